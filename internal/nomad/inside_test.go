package nomad

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
	"rockpool/pkg/nullio"
)

// near is a cluster in this process that runs one function.
type near struct {
	refuse error
	run    func(*nearby) // until it returns; nil = until it is killed
	last   *nearby
}

func (n *near) Start(_ context.Context, allocID, task string, p Program) (Running, error) {
	if n.refuse != nil {
		return nil, n.refuse
	}
	r := &nearby{spec: p, task: task, killed: make(chan struct{}), done: make(chan struct{}), sizes: make(chan execution.Size, 4)}
	r.inR, r.in = io.Pipe()
	r.outR, r.out = io.Pipe()
	r.errR, r.err = io.Pipe()
	n.last = r
	r.work.Go(func() {
		if n.run != nil {
			n.run(r)
		} else {
			<-r.killed
		}
		_, _, _ = r.out.Close(), r.err.Close(), r.inR.Close()
		close(r.done)
	})
	return r, nil
}

type nearby struct {
	spec       Program
	task       string
	inR        *io.PipeReader
	in         *io.PipeWriter
	outR, errR *io.PipeReader
	out, err   *io.PipeWriter
	sizes      chan execution.Size
	work       sync.WaitGroup
	once       sync.Once
	killed     chan struct{}
	done       chan struct{}
	code       int
	lost       error
	closed     bool
}

func (r *nearby) Stdin() io.WriteCloser { return r.in }
func (r *nearby) Stdout() io.Reader     { return r.outR }
func (r *nearby) Kill() error           { r.once.Do(func() { close(r.killed) }); return nil }
func (r *nearby) Done() <-chan struct{} { return r.done }
func (r *nearby) Close()                { r.closed = true; r.work.Wait() }
func (r *nearby) Exit() (execution.Exit, error) {
	return execution.Exit{Code: r.code, Start: execution.Warm}, r.lost
}
func (r *nearby) Resize(w, h uint16) error {
	r.sizes <- execution.Size{Width: w, Height: h}
	return nil
}

func (r *nearby) Stderr() io.Reader {
	if r.spec.TTY && !r.spec.SplitStderr {
		return nil
	}
	return r.errR
}

func inProcess(n *near) *Client {
	c := &Client{opts: Options{Inside: Inside{Programs: n}}}
	c.native.Store(true)
	return c
}

var here = execution.Place{AllocID: "a"}

func TestAProgramInsideGetsAndGivesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("a line of output that is one of many\n", 20_000)
		n := &near{run: func(r *nearby) {
			if s := <-r.sizes; s != (execution.Size{Width: 80, Height: 24}) {
				t.Errorf("its window is %+v", s)
			}
			in, err := io.ReadAll(r.inR)
			if err != nil {
				t.Error(err)
			}
			var both sync.WaitGroup
			both.Go(func() { _, _ = io.WriteString(r.out, string(in)+long) })
			both.Go(func() { _, _ = io.WriteString(r.err, "warning") })
			both.Wait()
			r.code = 7
		}}
		stdin := nullio.NewStdin(0)
		if _, err := stdin.Write([]byte("input ")); err != nil {
			t.Fatal(err)
		}
		if err := stdin.Close(); err != nil {
			t.Fatal(err)
		}
		sizes := make(chan execution.Size, 1)
		sizes <- execution.Size{Width: 80, Height: 24}
		close(sizes)
		var out, errs bytes.Buffer
		exit, err := inProcess(n).Exec(t.Context(), here, execution.Spec{ID: "x", Command: "c", Env: map[string]string{"B": "2=2", "A": "1"}, TTY: true, SplitStderr: true},
			execution.Stdio{Stdin: stdin, Stdout: &out, Stderr: &errs, Resize: sizes})
		if exit != (execution.Exit{Code: 7, Start: execution.Warm}) || err != nil || out.String() != "input "+long || errs.String() != "warning" {
			t.Errorf("it ended with %+v, %v, %d bytes and %q", exit, err, out.Len(), errs.String())
		}
		s := n.last.spec
		if strings.Join(s.Argv, " ") != "/bin/bash -c c" || strings.Join(s.Env, " ") != "A=1 B=2=2" || s.User != learner || n.last.task != mainTask || !n.last.closed {
			t.Errorf("it was asked for as %+v, closed %v", s, n.last.closed)
		}
	})
}

func TestHowProgramsInsideDoNotEndWell(t *testing.T) {
	broken := errors.New("a writer that is broken")
	for name, c := range map[string]struct {
		near   near
		stdout io.Writer
		cancel bool
		kind   fault.Kind
		is     error
	}{
		"it could not be started":      {near: near{refuse: fault.New(fault.Internal, "command not found: /bin/bash")}, kind: fault.Unavailable, is: errNoExitCode},
		"its allocation is gone":       {near: near{refuse: fault.New(fault.NotFound, "Unknown allocation %q", "a")}, kind: fault.Gone},
		"nobody knows how it ended":    {near: near{run: func(r *nearby) { r.lost = errors.New("lost") }}, kind: fault.Unavailable, is: errNoExitCode},
		"its caller has left":          {cancel: true, kind: fault.KindOf(context.Canceled), is: context.Canceled},
		"nobody takes its output":      {near: near{run: writes}, stdout: writer(func() error { return broken }), kind: fault.Internal, is: broken},
		"what takes its output panics": {near: near{run: writes}, stdout: writer(func() error { panic("of the writer") }), kind: fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.cancel {
					go func() { synctest.Wait(); cancel() }()
				}
				stdin := nullio.NewStdin(0)
				if c.stdout == nil {
					c.stdout = io.Discard
				}
				exit, err := inProcess(&c.near).Exec(ctx, here, execution.Spec{ID: "x"}, execution.Stdio{Stdin: stdin, Stdout: c.stdout, Stderr: io.Discard})
				if err == nil || exit != (execution.Exit{}) || fault.KindOf(err) != c.kind || c.is != nil && !errors.Is(err, c.is) {
					t.Errorf("it ended with %+v, %v", exit, err)
				}
				if r := c.near.last; r != nil && !r.closed {
					t.Error("it was not closed")
				}
			})
		})
	}
}

// writes is a program that writes until it is killed.
func writes(r *nearby) {
	for {
		select {
		case <-r.killed:
			return
		default:
			if _, err := io.WriteString(r.out, "more"); err != nil {
				return
			}
		}
	}
}

type writer func() error

func (w writer) Write([]byte) (int, error) { return 0, w() }
