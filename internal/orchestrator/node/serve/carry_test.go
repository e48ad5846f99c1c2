package serve

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/inspect"
)

// spoken is an execution that has said everything and waits for its end.
type spoken struct {
	driver.Execution
	out    string
	killed chan struct{}
}

func (s *spoken) Stdout() io.Reader { return strings.NewReader(s.out) }
func (s *spoken) Stderr() io.Reader { return nil }
func (s *spoken) Kill() error       { close(s.killed); return nil }

// starts is a node that starts one kind of execution.
type starts struct {
	Node
	run driver.Execution
	err error
}

func (s starts) ID() string { return "n" }
func (s starts) Exec(context.Context, string, string, driver.ExecSpec) (driver.Execution, error) {
	return s.run, s.err
}

func TestAnExecutionIsCarriedWithoutAConnection(t *testing.T) {
	run := &spoken{out: "said", killed: make(chan struct{})}
	h := New(starts{run: run}, nil, inspect.Process{}, nil)
	c, err := h.Carry(t.Context(), "a", "t", driver.ExecSpec{Argv: []string{"x"}, Env: []string{"A=1"}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.Carry(t.Context(), "a", "t", driver.ExecSpec{Argv: []string{"x"}})
	if err != nil || h.alone() {
		t.Errorf("with two of them one is alone: %v, %v", h.alone(), err)
	}
	if out, err := io.ReadAll(c.Stdout()); string(out) != "said" || err != nil || c.Stderr() != nil {
		t.Errorf("it said %q, %v", out, err)
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	select {
	case <-run.killed:
	default:
		t.Error("it was not killed")
	}
	other.Close()
	c.Close()
	if n := h.execs.Load(); n != 0 {
		t.Errorf("%d executions are carried when all are closed", n)
	}
}

func TestWhatIsWrongWithAnExecutionIsSaidOnEitherWay(t *testing.T) {
	for name, c := range map[string]struct {
		env  string
		err  error
		kind fault.Kind
	}{
		"a variable without a name": {env: "=x", kind: fault.Invalid},
		"a variable with a NUL":     {env: "A=x\x00y", kind: fault.Invalid},
		"no such command":           {env: "A=", err: driver.ErrNoCommand, kind: fault.Internal},
		"no such task":              {env: "A=", err: driver.ErrTaskGone, kind: fault.NotFound},
	} {
		h := New(starts{err: c.err}, nil, inspect.Process{}, nil)
		if _, err := h.Carry(t.Context(), "a", "t", driver.ExecSpec{Argv: []string{"x"}, Env: []string{c.env}}); fault.KindOf(err) != c.kind || h.execs.Load() != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A program that floods is read at its pace while there are others, and killing it waits for nothing.
func TestWhatIsCarriedGoesAtItsPace(t *testing.T) {
	gone := make(chan struct{})
	p := &paced{from: endless{}, pace: &pace{}, alone: func() bool { return false }, gone: gone}
	buf := make([]byte, 1<<20)
	read := 0
	for p.rest == 0 {
		n, err := p.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if read += n; read > 2*paceBurst {
			t.Fatal("it is not held back")
		}
	}
	p.rest = time.Hour
	close(gone)
	if _, err := p.Read(buf); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
