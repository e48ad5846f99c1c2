package docker

import (
	"context"
	"fmt"
	"io"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
)

// The engine knows one stream for a terminal. Where stderr is to be apart, the program's goes into a FIFO that a second program
// reads; opening it makes each wait for the other. The image needs sh, mkfifo, cat, rm and a /tmp that the user may write.
const (
	makeFIFO   = `mkfifo "$0" 2>/dev/null; `
	intoFIFO   = makeFIFO + `exec 2>"$0"; rm -f "$0"; exec "$@"`
	fromFIFO   = makeFIFO + `exec <"$0"; echo >&2; exec cat`
	fifoPrefix = "/tmp/.rockpool-stderr-"
)

// openGrace is how long the reader may take to open the FIFO after the program has ended.
const openGrace = time.Second

// apart is a program on a terminal whose stderr comes from a reader.
type apart struct {
	main, reader *execution
	done         chan struct{}
}

func (t *task) execApart(ctx context.Context, spec driver.ExecSpec, m *meter) (driver.Execution, error) {
	fifo := fifoPrefix + ident.New()
	reader, err := t.exec(ctx, driver.ExecSpec{Argv: []string{"sh", "-c", fromFIFO, fifo}, Env: spec.Env, User: spec.User, Dir: "/"}, m, newMeter(0))
	if err != nil {
		return nil, fmt.Errorf("keep stderr apart on a terminal: %w", err)
	}
	_ = reader.Stdin().Close()
	spec.Argv = append([]string{"sh", "-c", intoFIFO, fifo}, spec.Argv...)
	main, err := t.exec(ctx, spec, m, m)
	if err != nil {
		_ = reader.Kill()
		return nil, err
	}
	a := &apart{main, reader, make(chan struct{})}
	t.driver.goroutines.Go(a.wait)
	return a, nil
}

// wait ends a reader for which nobody will ever open the other end, or whose other end a service keeps open.
func (a *apart) wait() {
	defer close(a.done)
	opened := make(chan struct{})
	a.main.task.driver.goroutines.Go(func() {
		var line [1]byte
		if n, _ := a.reader.stderr.Read(line[:]); n > 0 {
			close(opened)
		}
		_, _ = io.Copy(io.Discard, a.reader.stderr)
	})
	<-a.main.done
	timer := time.NewTimer(openGrace)
	defer timer.Stop()
	select {
	case <-opened:
		if a.main.spec.Background {
			timer.Reset(serviceDrain)
			break
		}
		<-a.reader.done
		return
	case <-a.reader.done:
		return
	case <-timer.C:
		_ = a.reader.Kill()
	}
	select {
	case <-a.reader.done:
	case <-timer.C:
	}
	_ = a.reader.Kill()
	<-a.reader.done
}

func (a *apart) Stdin() io.WriteCloser    { return a.main.Stdin() }
func (a *apart) Stdout() io.Reader        { return a.main.Stdout() }
func (a *apart) Stderr() io.Reader        { return a.reader.Stdout() }
func (a *apart) Resize(w, h uint16) error { return a.main.Resize(w, h) }
func (a *apart) Signal(n int) error       { return a.main.Signal(n) }
func (a *apart) Kill() error              { return a.main.Kill() }
func (a *apart) Done() <-chan struct{}    { return a.done }

// Result is the program's. Both streams were counted by the same meter.
func (a *apart) Result() (driver.ExecResult, error) {
	r, err := a.main.Result()
	r.OutputBytes = a.main.meter.total()
	if _, lost := a.reader.Result(); err == nil && lost != nil {
		return driver.ExecResult{}, fmt.Errorf("stderr: %w", lost)
	}
	return r, err
}
