// Package service runs the gateway's real binary as a process, for everything that looks at it from outside.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rockpool/tests/platform"
)

// Build compiles the gateway into dir and returns the path of the binary; ROCKPOOL_GATEWAY names one that is there already.
func Build(ctx context.Context, dir string) (string, error) {
	if bin := os.Getenv("ROCKPOOL_GATEWAY"); bin != "" {
		return bin, nil
	}
	bin := filepath.Join(dir, "gateway")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "rockpool/cmd/gateway").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the gateway: %w\n%s", err, out)
	}
	return bin, nil
}

// Options say how to start a gateway.
type Options struct {
	Binary string
	Dir    string // data directory; kept between starts
	Port   int    // 0 = a free one
	Token  string
	Keep   bool      // runners outlive an orderly stop
	Log    io.Writer // the service's log; nil = dropped
	Env    []string  // more configuration, as ROCKPOOL_…=value
}

// Service is a running gateway.
type Service struct {
	*platform.Client
	URL  string
	Port int
	dir  string // data directory
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	seen sandboxIDs
}

// Start runs a gateway and returns once it says that it listens. It may still be recovering: then it holds requests itself.
func Start(ctx context.Context, o Options) (*Service, error) {
	if o.Port == 0 {
		p, err := FreePort()
		if err != nil {
			return nil, err
		}
		o.Port = p
	}
	dir, err := os.MkdirTemp("", "notify-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer notify.Close()

	cmd := exec.Command(o.Binary, "serve", "-config", filepath.Join(o.Dir, "configuration.yaml"))
	onStop := "remove"
	if o.Keep {
		onStop = "keep"
	}
	cmd.Env = append(os.Environ(),
		"NOTIFY_SOCKET="+filepath.Join(dir, "s"),
		"ROCKPOOL_SERVER_ADDRESS=127.0.0.1",
		"ROCKPOOL_SERVER_PORT="+strconv.Itoa(o.Port),
		"ROCKPOOL_SERVER_TOKEN="+o.Token,
		"ROCKPOOL_ORCHESTRATOR_DATADIR="+o.Dir,
		"ROCKPOOL_ORCHESTRATOR_ONSTOP="+onStop)
	cmd.Env = append(cmd.Env, o.Env...)
	cmd.Stderr = o.Log
	cmd.Stdout = o.Log
	// A terminal's Ctrl-C reaches whoever runs the service, which then stops it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	url := "http://127.0.0.1:" + strconv.Itoa(o.Port)
	s := &Service{Client: platform.New(url, o.Token), URL: url, Port: o.Port, dir: o.Dir, cmd: cmd, done: make(chan struct{})}
	go func() {
		s.err = cmd.Wait()
		close(s.done)
		_ = notify.SetReadDeadline(time.Unix(1, 0))
	}()
	stop := context.AfterFunc(ctx, func() { _ = notify.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = notify.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			select {
			case <-s.done:
				return nil, fmt.Errorf("the gateway ended before it listened: %w", errors.Join(s.err, errEnded))
			default:
			}
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, errors.Join(fmt.Errorf("the gateway did not say that it listens: %w", err), s.Stop()) // in order, for what it has begun
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return s, nil
		}
	}
}

var errEnded = errors.New("see its log")

// PID is the service's process id.
func (s *Service) PID() int { return s.cmd.Process.Pid }

// Done is closed when the process has ended.
func (s *Service) Done() <-chan struct{} { return s.done }

// Stop asks for an orderly stop and waits for it.
func (s *Service) Stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	s.Client.Close()
	select {
	case <-s.done:
		if s.err != nil {
			return fmt.Errorf("the gateway's exit: %w", s.err)
		}
		return nil
	case <-time.After(40 * time.Second):
		_ = s.Kill()
		return errors.New("the gateway did not stop within 40 s of SIGINT")
	}
}

// Kill ends the process without a chance to tidy up.
func (s *Service) Kill() error {
	s.Client.Close()
	err := s.cmd.Process.Kill()
	<-s.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// FreePort is a port of loopback that nobody listened on a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
