package execution_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/lifecycle"
	"rockpool/internal/runner/execution"
	"rockpool/pkg/nullio"
)

// program is an Executor with one program.
type program struct {
	run     func(ctx context.Context, spec execution.Spec, s execution.Stdio) (int, error)
	result  execution.Result
	failing error // of Result and Kill
	killed  chan struct{}
	signals []string

	unproved bool
}

func (p *program) Exec(ctx context.Context, _ execution.Place, spec execution.Spec, s execution.Stdio) (execution.Exit, error) {
	code, err := p.run(ctx, spec, s)
	return execution.Exit{Code: code, Start: execution.Cold, Unproved: p.unproved}, err
}

func (p *program) Result(context.Context, execution.Place, string) (execution.Result, error) {
	return p.result, p.failing
}

func (p *program) Signal(_ context.Context, _ execution.Place, _, signal string) error {
	p.signals = append(p.signals, signal)
	return nil
}

func (p *program) Kill(context.Context, execution.Place, string) error {
	if p.failing == nil {
		close(p.killed)
	}
	return p.failing
}

// untilKey ends when the given byte is typed; 0 = never.
func (p *program) untilKey(key byte) func(context.Context, execution.Spec, execution.Stdio) (int, error) {
	return func(ctx context.Context, _ execution.Spec, s execution.Stdio) (int, error) {
		typed := make(chan byte)
		var tasks lifecycle.Tasks
		tasks.Go(func() {
			buf := make([]byte, 1)
			for {
				if _, err := s.Stdin.Read(buf); err != nil {
					return
				}
				if key != 0 && buf[0] == key {
					close(typed)
					return
				}
			}
		})
		select {
		case <-typed:
			return 131, nil
		case <-p.killed:
			return 137, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func TestHowExecutionsEnd(t *testing.T) {
	broken := errors.New("the stream broke")
	for _, c := range []struct {
		name      string
		key       byte // that ends the program; 0 = it must be killed
		code      int
		err       error
		cause     error         // ends the context
		causeAt   time.Duration // 0 = after a second
		limit     time.Duration //
		result    execution.Result
		failing   error
		notNative bool
		unproved  bool // the program and whoever could tell of it were killed
		noTTY     bool
		want      execution.Kind
		wantCode  int
		verdictAt time.Duration
		endAt     time.Duration
		discarded bool
		instant   bool // the program ends by itself
	}{
		{name: "an exit", instant: true, code: 7, want: execution.Exited, wantCode: 7},
		{name: "a code beyond a byte", instant: true, code: 256 + 3, want: execution.Exited, wantCode: 3},
		{name: "a lost code that cannot be read", instant: true, err: broken, failing: broken, want: execution.Failed, verdictAt: 500 * time.Millisecond, endAt: 500 * time.Millisecond},
		{name: "a lost code that can be read", instant: true, err: broken, result: execution.Result{ExitCode: 4}, want: execution.Exited, wantCode: 4, verdictAt: 500 * time.Millisecond, endAt: 500 * time.Millisecond},
		{name: "a lost code, and output with it", instant: true, err: broken, result: execution.Result{OutputBytes: 1}, want: execution.Failed, verdictAt: 500 * time.Millisecond, endAt: 500 * time.Millisecond},
		{name: "a lost code of a killed program", instant: true, err: broken, result: execution.Result{ExitCode: 137, Killed: true}, want: execution.Failed, verdictAt: 500 * time.Millisecond, endAt: 500 * time.Millisecond},
		{name: "128 and the kernel killed", instant: true, code: 128, result: execution.Result{OOMKilled: true}, want: execution.OutOfMemory},
		{name: "128 elsewhere, without news", instant: true, code: 128, notNative: true, want: execution.Exited, wantCode: 128, verdictAt: time.Second, endAt: time.Second},
		{name: "137 that nothing proves, without news", instant: true, code: 137, notNative: true, unproved: true, want: execution.Exited, wantCode: 137, verdictAt: time.Second, endAt: time.Second},
		{name: "128 that nothing proves, without news", instant: true, code: 128, notNative: true, unproved: true, want: execution.Exited, wantCode: 128, verdictAt: time.Second, endAt: time.Second},
		{name: "137 that is proved", instant: true, code: 137, notNative: true, want: execution.Exited, wantCode: 137},
		{name: "137 that nothing proves, and then news", instant: true, code: 137, notNative: true, unproved: true, cause: execution.ErrOutOfMemory, causeAt: 900 * time.Millisecond,
			want: execution.OutOfMemory, verdictAt: 900 * time.Millisecond, endAt: 900 * time.Millisecond},
		{name: "137 that nothing proves, of a runner that was deleted", instant: true, code: 137, notNative: true, unproved: true, cause: execution.ErrDeleted, causeAt: time.Millisecond,
			want: execution.Stopped, verdictAt: time.Millisecond, endAt: time.Millisecond},
		{name: "time limit, QUIT works", key: 0x1c, limit: 2 * time.Second, want: execution.TimedOut, verdictAt: 2 * time.Second, endAt: 2 * time.Second},
		{name: "time limit, QUIT ignored", limit: 2 * time.Second, want: execution.TimedOut, verdictAt: 2 * time.Second, endAt: 5 * time.Second},
		{name: "time limit, cannot be killed", limit: 2 * time.Second, failing: broken, want: execution.TimedOut, verdictAt: 2 * time.Second, endAt: 5 * time.Second, discarded: true},
		{name: "time limit elsewhere, QUIT ignored", limit: 2 * time.Second, notNative: true, want: execution.TimedOut, verdictAt: 2 * time.Second, endAt: 5 * time.Second},
		{name: "left running", instant: true, err: execution.ErrLeftRunning, notNative: true, want: execution.Failed, verdictAt: 500 * time.Millisecond, endAt: 500 * time.Millisecond, discarded: true},
		{name: "time limit without a terminal", limit: 2 * time.Second, noTTY: true, want: execution.TimedOut, verdictAt: 2 * time.Second, endAt: 5 * time.Second},
		{name: "negative limit", key: 0x1c, limit: -time.Second, want: execution.TimedOut},
		{name: "client left", key: 0x1c, cause: execution.ErrClientLeft, want: execution.Left, verdictAt: time.Second, endAt: time.Second},
		{name: "deleted", cause: execution.ErrDeleted, want: execution.Stopped, verdictAt: time.Second, endAt: 4 * time.Second},
		{name: "inactive", key: 0x1c, cause: execution.ErrInactive, want: execution.TimedOut, verdictAt: time.Second, endAt: time.Second},
		{name: "out of memory, nothing is typed", cause: execution.ErrOutOfMemory, want: execution.OutOfMemory, verdictAt: time.Second, endAt: time.Second},
		{name: "lost node", cause: execution.ErrGone, want: execution.Failed, verdictAt: time.Second, endAt: time.Second},
		{name: "shutdown", key: 0x1c, cause: execution.ErrShutdown, want: execution.Failed, verdictAt: time.Second, endAt: time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				p := &program{killed: make(chan struct{}), result: c.result, failing: c.failing, unproved: c.unproved}
				p.run = p.untilKey(c.key)
				if c.instant {
					p.run = func(context.Context, execution.Spec, execution.Stdio) (int, error) { return c.code, c.err }
				}
				var tasks lifecycle.Tasks
				e := &execution.Engine{Executor: p, SplitStderr: true, Native: func() bool { return !c.notNative }, Tasks: &tasks}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if c.cause != nil {
					time.AfterFunc(cmp.Or(c.causeAt, time.Second), func() { cancel(c.cause) })
				}
				var discarded error
				out := e.Run(ctx, execution.Place{}, "x", execution.Request{TTY: !c.noTTY, TimeLimit: c.limit},
					execution.Client{Stdin: nullio.NewStdin(0), Stdout: io.Discard, Stderr: io.Discard}, func(err error) { discarded = err })
				if out.Kind != c.want || out.Code != c.wantCode || time.Since(began) != c.verdictAt {
					t.Errorf("got %+v after %v, want kind %d, code %d after %v", out, time.Since(began), c.want, c.wantCode, c.verdictAt)
				}
				if err := tasks.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if time.Since(began) != c.endAt || (discarded != nil) != c.discarded {
					t.Errorf("over after %v, discarded: %v; want %v, %v", time.Since(began), discarded, c.endAt, c.discarded)
				}
				if c.noTTY && (len(p.signals) != 1 || p.signals[0] != "SIGQUIT") {
					t.Errorf("signals: %v", p.signals)
				}
			})
		})
	}
}

// An exec that cannot be ended is most often one whose runner has just ended. The news of that comes by another way, and is the verdict; to discard the runner first would be one of ours.
func TestARunnersOwnEndIsTheVerdictOfWhatItLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &program{killed: make(chan struct{})}
		p.run = func(context.Context, execution.Spec, execution.Stdio) (int, error) {
			return 0, execution.ErrLeftRunning
		}
		var tasks lifecycle.Tasks
		e := &execution.Engine{Executor: p, Native: func() bool { return false }, Tasks: &tasks}
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		time.AfterFunc(200*time.Millisecond, func() { cancel(execution.ErrCompleted) })
		discarded := false
		out := e.Run(ctx, execution.Place{}, "id", execution.Request{}, execution.Client{Stdin: nullio.NewStdin(0), Stdout: io.Discard, Stderr: io.Discard}, func(err error) {
			discarded = true
			cancel(err)
		})
		if out.Kind != execution.Stopped || !discarded {
			t.Errorf("%v, discarded %v", out, discarded)
		}
		if err := tasks.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Output that was cut off is never taken for complete, whoever has cut it.
func TestTheOutputLimit(t *testing.T) {
	const limit = 8
	for _, c := range []struct {
		name     string
		output   string
		result   execution.Result
		failing  error
		foreign  bool
		want     execution.Kind
		wantCode int
	}{
		{name: "less", output: "1234567", want: execution.Exited},
		{name: "all of it, said the node", output: "12345678", result: execution.Result{Verdict: "exit"}, want: execution.Exited},
		{name: "the node cut it off", output: "12345678", result: execution.Result{Verdict: execution.VerdictOutput}, want: execution.Flooded},
		{name: "the node cannot be asked", output: "12345678", failing: errors.New("broken"), want: execution.Failed},
		{name: "elsewhere, as much as it may", output: "12345678", foreign: true, want: execution.Exited},
		{name: "elsewhere, more", output: "123456789", foreign: true, want: execution.Flooded},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var spec execution.Spec
				p := &program{killed: make(chan struct{}), result: c.result, failing: c.failing}
				p.run = func(ctx context.Context, s execution.Spec, stdio execution.Stdio) (int, error) {
					spec = s
					_, _ = stdio.Stdout.Write([]byte(c.output[:3]))
					_, _ = stdio.Stderr.Write([]byte(c.output[3:]))
					if len(c.output) > limit {
						<-ctx.Done()
					}
					return 0, ctx.Err()
				}
				var tasks lifecycle.Tasks
				var out bytes.Buffer
				e := &execution.Engine{Executor: p, OutputLimit: limit, Native: func() bool { return !c.foreign }, Tasks: &tasks}
				got := e.Run(t.Context(), execution.Place{}, "x", execution.Request{TTY: true, TimeLimit: time.Minute},
					execution.Client{Stdin: nullio.NewStdin(0), Stdout: &out, Stderr: &out}, func(error) {})
				if err := tasks.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got.Kind != c.want || got.Code != 0 || c.want == execution.Flooded && got.Limit != limit {
					t.Errorf("%+v", got)
				}
				if want := c.output[:min(limit, len(c.output))]; out.String() != want {
					t.Errorf("delivered %q, want %q", out.String(), want)
				}
				if spec.OutputLimit != limit || spec.TimeLimit <= time.Minute+execution.Grace {
					t.Errorf("the node is told %+v", spec)
				}
			})
		})
	}
}

func TestNoOutputAfterTheVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &program{killed: make(chan struct{})}
		p.run = func(ctx context.Context, _ execution.Spec, s execution.Stdio) (int, error) {
			_, _ = s.Stdout.Write([]byte("before"))
			time.Sleep(2 * time.Second)
			_, err := s.Stdout.Write([]byte("after"))
			return 0, err
		}
		var tasks lifecycle.Tasks
		var out bytes.Buffer
		e := &execution.Engine{Executor: p, Native: func() bool { return true }, Tasks: &tasks}
		e.Run(t.Context(), execution.Place{}, "x", execution.Request{TTY: true, TimeLimit: time.Second},
			execution.Client{Stdin: nullio.NewStdin(0), Stdout: &out, Stderr: io.Discard}, func(err error) { t.Error(err) })
		if err := tasks.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out.String() != "before" {
			t.Errorf("got %q", out.String())
		}
	})
}

func TestARequestIsTakenOnce(t *testing.T) {
	var s execution.Store
	id, err := s.Put(execution.Request{Command: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := s.Take(id); !ok || r.Command != "a" {
		t.Error("it was not kept")
	}
	if _, ok := s.Take(id); ok {
		t.Error("it was taken twice")
	}
}
