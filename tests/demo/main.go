// Command demo starts the gateway with its embedded orchestrator and runs real programs through the public API, as an education
// platform would. Its transcript says what each step proved and how long it took.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"rockpool/tests/service"
)

func main() {
	binary := flag.String("gateway", "bin/gateway", "the gateway's binary")
	once := flag.Bool("once", false, "stop by itself after the transcript")
	port := flag.Int("port", 7200, "where the gateway listens; 0 = any free port")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *binary, *port, *once); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, port int, once bool) (err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	before, err := service.TakeBaseline()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rockpool-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log, err := os.Create(filepath.Join(dir, "gateway.log"))
	if err != nil {
		return err
	}
	defer log.Close()

	fmt.Println("Rockpool demo: one process, no Docker, no Nomad, no registry, no internet.")
	start := time.Now()
	s, err := service.Start(ctx, service.Options{Binary: binary, Dir: filepath.Join(dir, "data"), Port: port, Log: log})
	if ctx.Err() != nil && err != nil {
		return errInterrupted
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\nThe gateway's log:\n%s", err, text)
	}
	fmt.Printf("The gateway listens on %s after %s; its orchestrator, a Raft server with its log on disk and one node, runs inside it.\n\n",
		s.URL, round(time.Since(start)))

	failed := transcript(ctx, s)
	if failed == nil && !once {
		fmt.Printf("\nThe service is up. Try it by hand (Ctrl-C here stops everything):\n\n"+
			"  %s run --url %s --env %d -- python3\n"+
			"  curl -s %s/api/v1/statistics/execution-environments\n\n", relative(binary), s.URL, environment, s.URL)
		select {
		case <-ctx.Done():
			fmt.Println()
		case <-s.Done():
			failed = errors.New("the gateway ended by itself")
		}
	}
	if failed != nil && !errors.Is(failed, errInterrupted) {
		text, _ := os.ReadFile(log.Name())
		fmt.Fprintf(os.Stderr, "\nThe gateway's log:\n%s\n", tail(text, 4000))
	}
	return errors.Join(failed, stopped(s, before))
}

var errInterrupted = errors.New("interrupted before every step was shown")

// stopped ends the service and compares the machine with what it was before.
func stopped(s *service.Service, before service.Baseline) error {
	start := time.Now()
	if err := s.Stop(); err != nil {
		return err
	}
	left, err := before.Since()
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %q", left)
	}
	fmt.Printf("Stopped in %s; no process, mount, control group or network namespace is left.\n", round(time.Since(start)))
	return nil
}

func round(d time.Duration) time.Duration {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond)
	case d < time.Second:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

func relative(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if r, err := filepath.Rel(wd, path); err == nil {
			return r
		}
	}
	return path
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
