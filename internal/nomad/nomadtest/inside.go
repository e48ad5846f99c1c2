package nomadtest

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/endpoint"
	"rockpool/internal/nomad"
	"rockpool/internal/runner/execution"
)

// Inside are the ways to the cluster that an orchestrator in the gateway's process offers.
func (c *Cluster) Inside() nomad.Inside {
	return nomad.Inside{Transport: &endpoint.Direct{Handler: c.routes()}, Programs: programs{c}}
}

type programs struct{ c *Cluster }

// Start runs a program. An allocation that the cluster does not have is elsewhere.
func (s programs) Start(_ context.Context, allocID, task string, spec nomad.Program) (nomad.Running, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	known := false
	for _, a := range c.allocs {
		known = known || a.ID == allocID
	}
	if !known {
		return nil, nomad.ErrElsewhere
	}
	r := &running{process: &process{
		alloc: allocID, user: spec.User, tty: spec.TTY, env: map[string]string{}, stdin: make(chan string, 64), sizes: make(chan api.TerminalSize, 8),
		signals: make(chan string, 8), killed: make(chan struct{}), lost: make(chan struct{}),
	}, done: make(chan struct{})}
	for _, v := range spec.Env {
		name, value, _ := strings.Cut(v, "=")
		r.env[name] = value
	}
	r.outR, r.out = io.Pipe()
	r.errR, r.err = io.Pipe()
	r.send = func(stream string, data []byte) {
		to := r.out
		if stream == "stderr" {
			to = r.err
		}
		_, _ = to.Write(data)
	}
	c.running[spec.ID] = r.process
	r.work.Go(func() {
		r.code = r.run(spec.Argv[len(spec.Argv)-1])
		c.mu.Lock()
		delete(c.running, spec.ID)
		c.mu.Unlock()
		_, _ = r.out.Close(), r.err.Close()
		close(r.done)
	})
	return r, nil
}

type running struct {
	*process
	outR, errR *io.PipeReader
	out, err   *io.PipeWriter
	work       sync.WaitGroup
	done       chan struct{}
	code       int // valid after done
	once       sync.Once
}

func (r *running) Stdin() io.WriteCloser { return input{r} }
func (r *running) Stdout() io.Reader     { return r.outR }
func (r *running) Stderr() io.Reader     { return r.errR }
func (r *running) Kill() error           { r.kill(); return nil }
func (r *running) Done() <-chan struct{} { return r.done }
func (r *running) Close()                { r.work.Wait() }

func (r *running) Resize(width, height uint16) error {
	select {
	case r.sizes <- api.TerminalSize{Width: int(width), Height: int(height)}:
	case <-r.done:
	}
	return nil
}

func (r *running) Exit() (execution.Exit, error) {
	if r.code == lost {
		return execution.Exit{}, errors.New("the outcome of the execution is not known")
	}
	return execution.Exit{Code: r.code, Start: execution.Warm}, nil
}

type input struct{ r *running }

func (i input) Write(p []byte) (int, error) {
	select {
	case i.r.stdin <- string(p):
		return len(p), nil
	case <-i.r.done:
		return 0, os.ErrClosed
	}
}

func (i input) Close() error {
	i.r.once.Do(func() { close(i.r.stdin) })
	return nil
}
