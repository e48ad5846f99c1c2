package nomadtest

import (
	"context"
	"encoding/json"
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
	c.mu.Lock()
	c.marks = true
	c.mu.Unlock()
	return nomad.Inside{Transport: &endpoint.Direct{Handler: c.routes()}, Programs: programs{c}, Changes: c.changes}
}

// handed is a stream of events whose objects are handed over.
type handed struct {
	c *Cluster
	s *sub
}

func (c *Cluster) changes(string) (nomad.Changes, error) {
	s := &sub{lines: make(chan []byte, 1<<16), cut: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = true
	return handed{c, s}, nil
}

// Next makes objects of what a connection would send, so that they are those of nomad/api.
func (h handed) Next(ctx context.Context) (uint64, []nomad.Change, error) {
	select {
	case line := <-h.s.lines:
		var got struct {
			Index  uint64
			Events []struct {
				Topic, Type, Key string
				Payload          struct {
					Job        *api.Job
					Evaluation *api.Evaluation
					Allocation *api.Allocation
				}
			}
		}
		if err := json.Unmarshal(line, &got); err != nil {
			return 0, nil, err
		}
		var list []nomad.Change
		for _, e := range got.Events {
			p := e.Payload
			list = append(list, nomad.Change{Topic: e.Topic, Type: e.Type, Key: e.Key, Object: func() any {
				switch e.Topic {
				case "Job":
					return p.Job
				case "Evaluation":
					return p.Evaluation
				}
				return p.Allocation
			}})
		}
		return got.Index, list, nil
	case <-h.s.cut:
	case <-h.c.stopping:
	case <-ctx.Done():
	}
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	delete(h.c.subs, h.s)
	return 0, nil, errors.New("the stream was cut")
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
