package serve

import (
	"context"
	"io"
	"sync"

	"rockpool/internal/orchestrator/driver"
)

// Carried is an execution whose streams are read and written in this process, without a connection between. What is read of it goes at the pace of all.
type Carried struct {
	driver.Execution
	stdout, stderr io.Reader
	handler        *Handler
	once           sync.Once
	gone           chan struct{}
}

// Carry starts a program for a caller in this process. Nobody is asked for a right: the caller has all. The execution outlives ctx; who asked for it kills
// it, reads its output to the end, and closes it after that.
func (h *Handler) Carry(ctx context.Context, allocID, task string, spec driver.ExecSpec) (*Carried, error) {
	run, err := h.start(ctx, allocID, task, spec)
	if err != nil {
		return nil, err
	}
	h.execs.Add(1)
	c := &Carried{Execution: run, handler: h, gone: make(chan struct{})}
	pace := &pace{}
	c.stdout = &paced{from: run.Stdout(), pace: pace, alone: h.alone, gone: c.gone}
	if stderr := run.Stderr(); stderr != nil {
		c.stderr = &paced{from: stderr, pace: pace, alone: h.alone, gone: c.gone}
	}
	return c, nil
}

// Stdout is the program's output, or that of its terminal.
func (c *Carried) Stdout() io.Reader { return c.stdout }

// Stderr is nil where it is part of Stdout.
func (c *Carried) Stderr() io.Reader { return c.stderr }

// Kill ends the execution, and nothing of it waits for its pace any more.
func (c *Carried) Kill() error {
	c.once.Do(func() { close(c.gone) })
	return c.Execution.Kill()
}

// Close says that the execution is carried no more.
func (c *Carried) Close() { c.handler.execs.Add(-1) }
