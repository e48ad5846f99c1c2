package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/tests/platform"
)

const (
	env  = 10
	pool = 16
)

// scenarios run in order; each adds its rows to the table.
var scenarios = []struct {
	name string
	run  func(context.Context, *bench) error
}{
	{"provision", provision}, {"claim", claimAndDestroy}, {"one", insideOneRunner}, {"many", manyExecutions}, {"idle", idleExecutions}, {"thousand", thousandIdle},
	{"cycle", cycle}, {"warm", warmCycles}, {"cycles", manyCycles}, {"churn", churn}, {"paced", pacedChurn}, {"register", registerToRunning},
}

func provision(ctx context.Context, b *bench) error {
	start := time.Now()
	if err := b.PutEnvironment(ctx, env, platform.Environment{PrewarmingPoolSize: pool, CPULimit: 100, MemoryLimit: 128, Image: "host"}); err != nil {
		return err
	}
	if err := b.waitIdle(ctx, pool); err != nil {
		return err
	}
	took := time.Since(start)
	b.add(figure{name: fmt.Sprintf("pool of %d filled", pool), text: ms(took), rate: pool / took.Seconds()})
	return nil
}

func (b *bench) waitIdle(ctx context.Context, n uint) error {
	return b.waitIdleFor(ctx, n, 30*time.Second)
}

func (b *bench) waitIdleFor(ctx context.Context, n uint, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := b.Statistics(ctx)
		if err != nil {
			return err
		}
		if s[strconv.Itoa(env)].IdleRunners >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d idle runners: %+v", n, s)
		case <-t.C:
		}
	}
}

func claimAndDestroy(ctx context.Context, b *bench) error {
	claims, destroys := figure{name: "claim", budget: time.Millisecond, tail: 5 * time.Millisecond}, figure{name: "destroy"}
	seen := map[string]bool{}
	for len(claims.samples) < b.n {
		var mine []string
		for range pool / 2 {
			start := time.Now()
			r, err := b.Claim(ctx, env, time.Minute)
			if err != nil {
				return err
			}
			claims.samples = append(claims.samples, time.Since(start))
			if seen[r] {
				return fmt.Errorf("runner %s was handed out twice", r)
			}
			seen[r] = true
			mine = append(mine, r)
			if err := b.waitIdle(ctx, pool); err != nil { // so that the refill is not measured with the claim
				return err
			}
		}
		for _, r := range mine {
			start := time.Now()
			if err := b.Release(ctx, r); err != nil {
				return err
			}
			destroys.samples = append(destroys.samples, time.Since(start))
		}
	}
	b.add(claims)
	b.add(destroys)
	return nil
}

func insideOneRunner(ctx context.Context, b *bench) error {
	r, err := b.Claim(ctx, env, 5*time.Minute)
	if err != nil {
		return err
	}
	upload := figure{name: "upload (one 2 KB file)", budget: 2 * time.Millisecond}
	first, whole := figure{name: "execute `echo hi` to first byte"}, figure{name: "execute `echo hi` to close", budget: 6 * time.Millisecond, tail: 20 * time.Millisecond}
	content := []byte(strings.Repeat("print('hello')\n", 140))
	for range b.n {
		start := time.Now()
		if err := b.Copy(ctx, r, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "main.py", Content: content}); err != nil {
			return err
		}
		upload.samples = append(upload.samples, time.Since(start))
	}
	for range b.n {
		start := time.Now()
		s, err := b.Start(ctx, r, platform.Execution{Command: "echo hi", TimeLimit: 20})
		if err != nil {
			return err
		}
		var byteAt time.Time
		o, err := s.WaitFunc(ctx, func(m platform.Message) {
			if m.Type == "stdout" && byteAt.IsZero() {
				byteAt = m.At
			}
		})
		s.Abort()
		if err != nil || o.Stdout != "hi\r\n" || o.Final.Type != "exit" || o.Final.Code != 0 {
			return fmt.Errorf("echo hi: %+v, %w", o, err)
		}
		first.samples = append(first.samples, byteAt.Sub(start))
		whole.samples = append(whole.samples, time.Since(start))
	}
	b.add(upload)
	b.add(first)
	b.add(whole)
	trip, err := stdinRoundTrip(ctx, b, r)
	if err != nil {
		return err
	}
	b.add(trip)
	return b.Release(ctx, r)
}

// stdinRoundTrip measures from a line sent to the program's own answer, with the terminal's echo off.
func stdinRoundTrip(ctx context.Context, b *bench, runner string) (figure, error) {
	f := figure{name: "stdin round trip", budget: 300 * time.Microsecond}
	s, err := b.Start(ctx, runner, platform.Execution{Command: "stty -echo; echo ready; exec cat"})
	if err != nil {
		return f, err
	}
	defer s.Abort()
	wait := func(want string) error {
		seen := ""
		for !strings.HasSuffix(seen, want+"\r\n") {
			m, err := s.Next(ctx)
			if err != nil {
				return err
			}
			seen += m.Text
		}
		return nil
	}
	if err := wait("ready"); err != nil {
		return f, err
	}
	for i := range b.n * 3 {
		line := strconv.Itoa(i)
		start := time.Now()
		if err := s.Send(line + "\n"); err != nil {
			return f, err
		}
		if err := wait(line); err != nil {
			return f, err
		}
		f.samples = append(f.samples, time.Since(start))
	}
	return f, nil
}

// idleExecutions measures what executions that wait for input cost.
func idleExecutions(ctx context.Context, b *bench) error {
	if b.service == nil {
		return nil
	}
	r, err := b.Claim(ctx, env, 5*time.Minute)
	if err != nil {
		return err
	}
	const open = 20
	for range open {
		s, err := b.Start(ctx, r, platform.Execution{Command: "cat"})
		if err != nil {
			return err
		}
		defer s.Abort()
		if _, err := s.Next(ctx); err != nil {
			return err
		}
	}
	if _, err := b.Run(ctx, r, platform.Execution{Command: "sleep 1"}); err != nil {
		return err
	}
	before, err := cpuTime(b.service.PID())
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := b.Run(ctx, r, platform.Execution{Command: "sleep 5"}); err != nil {
		return err
	}
	after, err := cpuTime(b.service.PID())
	if err != nil {
		return err
	}
	b.add(figure{name: fmt.Sprintf("CPU of the service, %d idle executions and %d idle runners", open, pool), text: fmt.Sprintf("%.2f %% of a core", 100*(after-before).Seconds()/time.Since(start).Seconds())})
	return b.Release(ctx, r)
}

func cycle(ctx context.Context, b *bench) error {
	f := figure{name: "cycle: claim, upload, `python3` hello, list, destroy", budget: 30 * time.Millisecond}
	begin := time.Now()
	for range b.n / 2 {
		start := time.Now()
		if err := b.one(ctx); err != nil {
			return err
		}
		f.samples = append(f.samples, time.Since(start))
	}
	f.rate = float64(len(f.samples)) / time.Since(begin).Seconds()
	b.add(f)
	return nil
}

func (b *bench) one(ctx context.Context) error {
	r, err := b.claim(ctx)
	if err != nil {
		return err
	}
	if err := b.Copy(ctx, r, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "hello.py", Content: []byte("print('hello')\n")}); err != nil {
		return err
	}
	o, err := b.Run(ctx, r, platform.Execution{Command: "python3 hello.py", TimeLimit: 20})
	if err != nil || o.Stdout != "hello\r\n" || o.Final.Code != 0 {
		return fmt.Errorf("python3 hello.py: %+v, %w", o, err)
	}
	if files, err := b.List(ctx, r, "./", true); err != nil || len(files) != 1 {
		return fmt.Errorf("the listing is %+v, %w", files, err)
	}
	return b.Release(ctx, r)
}

// claim takes a runner, also when the pool is empty for a moment.
func (b *bench) claim(ctx context.Context) (string, error) {
	for {
		r, err := b.Claim(ctx, env, time.Minute)
		if e, ok := errors.AsType[*platform.StatusError](err); !ok || e.Status != 500 || !strings.Contains(e.Body, "NOMAD_OVERLOAD") {
			return r, err
		}
		if err := b.waitIdle(ctx, 1); err != nil {
			return "", err
		}
	}
}

// churn claims and destroys runners as fast as four clients can.
func churn(ctx context.Context, b *bench) error {
	f := figure{name: "churn: claim and destroy, 4 clients"}
	var mu sync.Mutex
	seen := map[string]bool{}
	g, gctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for range 4 {
		g.Go(func() error {
			for time.Since(begin) < b.churn {
				start := time.Now()
				r, err := b.claim(gctx)
				if err != nil {
					return err
				}
				if err := b.Release(gctx, r); err != nil {
					return err
				}
				mu.Lock()
				again := seen[r]
				seen[r] = true
				f.samples = append(f.samples, time.Since(start))
				mu.Unlock()
				if again {
					return fmt.Errorf("runner %s was handed out twice", r)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	f.rate = float64(len(f.samples)) / time.Since(begin).Seconds()
	b.add(f)
	return b.waitIdle(ctx, pool)
}

func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	text := string(data)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	user, err := strconv.Atoi(f[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond, err
}
