package execution

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/pkg/nullio"
)

// Kind is how an execution ended for its client.
type Kind uint8

// The kinds of outcomes.
const (
	Exited      Kind = iota
	TimedOut         // time limit, or the runner's inactivity
	OutOfMemory      // the whole container was killed
	Stopped          // the runner was removed on request, or stopped normally
	Flooded          // the program wrote more than it may
	Left             // the client closed
	Failed           // everything else; the reason is in the log
)

// String is the kind as figures name it.
func (k Kind) String() string {
	return [...]string{"exit", "timeout", "out_of_memory", "stopped", "output_limit", "left", "failed"}[k]
}

// Outcome is the one result of an execution.
type Outcome struct {
	Kind Kind
	Code int
	// Limit is what a program that Flooded may write, in bytes.
	Limit int64
	Start Start // of a program that ended by itself
	// Usage is filled where it was asked for and the cluster knows it.
	Usage *Result
	Err   error // the reason of Failed, for the log
}

// Causes that end the context of an execution.
var (
	ErrTimeLimit   = errors.New("the execution's time limit is over")
	ErrInactive    = errors.New("the runner was not used for its inactivity timeout")
	ErrDeleted     = errors.New("the runner was deleted")
	ErrCompleted   = errors.New("the runner's allocation stopped")
	ErrOutOfMemory = errors.New("the runner's allocation was out of memory")
	ErrGone        = errors.New("the runner's allocation failed or is lost")
	ErrClientLeft  = errors.New("the client closed the connection")
	ErrShutdown    = errors.New("the gateway stops")
	ErrOutputLimit = errors.New("the execution wrote more than it may")
)

// quit is what the QUIT key of a terminal sends.
const quit = 0x1c

// Times of an execution that has to end.
const (
	Grace    = 3 * time.Second  // between QUIT and the kill
	killTime = 10 * time.Second // for the kill itself
	oomTime  = time.Second      // an exit code 128, and one that nothing proves, wait for the news that the container was out of memory
	nodeTime = 5 * time.Second  // that the node's own time limit lies behind ours and the grace
)

// Client is the other side of an execution.
type Client struct {
	Stdin          *nullio.Stdin
	Stdout, Stderr io.Writer // may block; must stop blocking when the context of Run ends
	Resize         <-chan Size
	Usage          bool // fill in Outcome.Usage
}

// Engine runs executions.
type Engine struct {
	Executor    Executor
	SplitStderr bool
	OutputLimit int64 // bytes of stdout and stderr together; 0 = none
	// Native says that the node itself enforces limits, and that Result works.
	Native func() bool
	// Tasks are the executions whose clients have their verdict already.
	Tasks *lifecycle.Tasks
}

type ended struct {
	exit Exit
	err  error
}

// Run executes req at a place until it ends or ctx does, whose cause is the verdict then. discard is called when a program could
// not be ended.
func (e *Engine) Run(ctx context.Context, at Place, id string, req Request, c Client, discard func(error)) Outcome {
	ctx, cancel := limit(ctx, req.TimeLimit)
	defer cancel()
	ctx, flood := context.WithCancelCause(ctx)
	defer flood(nil)
	// The exec outlives the verdict by the grace period.
	execCtx, stopExec := context.WithCancel(context.WithoutCancel(ctx))
	result := make(chan ended, 1)
	flow := &flow{limit: e.OutputLimit, over: func() { flood(ErrOutputLimit) }}
	stdout, stderr := &valve{ctx: ctx.Done(), flow: flow, to: c.Stdout}, &valve{ctx: ctx.Done(), flow: flow, to: c.Stderr}
	spec := Spec{ID: id, Command: req.Command, Env: req.Environ(), Privileged: req.Privileged, TTY: req.TTY, SplitStderr: e.SplitStderr || !req.TTY,
		OutputLimit: e.OutputLimit}
	if req.TimeLimit != 0 {
		spec.TimeLimit = max(req.TimeLimit, 0) + Grace + nodeTime
	}
	started := e.Tasks.Go(func() {
		var r ended
		r.err = lifecycle.Guard(func() (err error) {
			r.exit, err = e.Executor.Exec(execCtx, at, spec, Stdio{Stdin: c.Stdin, Stdout: stdout, Stderr: stderr, Resize: c.Resize})
			return err
		})
		c.Stdin.CloseWithError(io.EOF)
		result <- r
	})
	if !started {
		stopExec()
		return Outcome{Kind: Failed, Err: ErrShutdown}
	}
	select {
	case r := <-result:
		stopExec()
		out := e.judge(ctx, at, id, c, r, flow)
		if errors.Is(r.err, ErrLeftRunning) { // not before: it may be that the runner has ended, and then that is the verdict
			discard(r.err)
		}
		return out
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	log := logging.From(ctx)
	// A terminal whose input was ended cannot be typed on.
	typed := !dead(cause) && spec.TTY && c.Stdin.Inject(quit) == nil
	if !e.Tasks.Go(func() {
		defer stopExec()
		if err := e.end(execCtx, stopExec, at, id, typed, c.Stdin, result, cause); err != nil {
			log.WithField("error", err.Error()).Warn("an execution could not be ended, its runner is discarded")
			discard(err)
		}
	}) {
		stopExec()
	}
	return e.verdict(cause)
}

func limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, max(d, 0), ErrTimeLimit)
}

func (e *Engine) verdict(cause error) Outcome {
	switch {
	case errors.Is(cause, ErrOutputLimit):
		return Outcome{Kind: Flooded, Limit: e.OutputLimit}
	case errors.Is(cause, ErrTimeLimit), errors.Is(cause, ErrInactive):
		return Outcome{Kind: TimedOut}
	case errors.Is(cause, ErrDeleted), errors.Is(cause, ErrCompleted):
		return Outcome{Kind: Stopped}
	case errors.Is(cause, ErrOutOfMemory):
		return Outcome{Kind: OutOfMemory}
	case errors.Is(cause, ErrClientLeft):
		return Outcome{Kind: Left}
	}
	return Outcome{Kind: Failed, Err: cause}
}

// judge turns what the exec returned into an outcome. Where all came that a program may write, the node knows whether there was more.
func (e *Engine) judge(ctx context.Context, at Place, id string, c Client, r ended, flow *flow) Outcome {
	if r.err != nil && ctx.Err() != nil {
		return e.verdict(context.Cause(ctx))
	}
	if r.err != nil {
		// The runner's end and the end of its exec are told on different ways: give the reason a moment.
		if cause := waitCause(ctx, oomTime/2); cause != nil {
			return e.verdict(cause)
		}
		// A program's code stands for output that is whole: what the broken stream has not brought, nobody will.
		if res, err := e.result(ctx, at, id); err == nil && !res.Killed && !res.OOMKilled && res.OutputBytes == flow.count() {
			return Outcome{Kind: Exited, Code: res.ExitCode, Usage: &res}
		}
		return Outcome{Kind: Failed, Err: r.err}
	}
	if r.exit.Unproved { // clients read 137 as out of memory, which a program that fell with its runner need not have been
		if cause := waitCause(ctx, oomTime); cause != nil {
			return e.verdict(cause)
		}
	}
	out, full := Outcome{Kind: Exited, Code: r.exit.Code & 0xff, Start: r.exit.Start}, flow.full()
	if r.exit.Code != 128 && !c.Usage && !full {
		return out
	}
	res, err := e.result(ctx, at, id)
	if err == nil {
		out.Usage = &res
	}
	if full && e.Native() {
		if err != nil { // cut-off output must never look complete
			return Outcome{Kind: Failed, Err: err}
		}
		if res.Verdict == VerdictOutput {
			return Outcome{Kind: Flooded, Limit: e.OutputLimit, Usage: &res}
		}
	}
	if r.exit.Code == 128 {
		if out.Usage != nil && out.Usage.OOMKilled {
			return Outcome{Kind: OutOfMemory, Usage: out.Usage}
		}
		if out.Usage == nil && !r.exit.Unproved && errors.Is(waitCause(ctx, oomTime), ErrOutOfMemory) {
			return Outcome{Kind: OutOfMemory}
		}
	}
	return out
}

func (e *Engine) result(ctx context.Context, at Place, id string) (Result, error) {
	if !e.Native() {
		return Result{}, ErrNotOffered
	}
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	return e.Executor.Result(ctx, at, id)
}

func waitCause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// dead reports whether there is nothing left that could be stopped.
func dead(cause error) bool {
	return errors.Is(cause, ErrOutOfMemory) || errors.Is(cause, ErrGone) || errors.Is(cause, ErrCompleted)
}

// purged reports whether somebody removes the whole runner.
func purged(cause error) bool { return errors.Is(cause, ErrDeleted) || errors.Is(cause, ErrInactive) }

// end stops a program whose client has its verdict, after QUIT was typed or else by signal. It returns when the exec has returned.
func (e *Engine) end(ctx context.Context, stopExec func(), at Place, id string, typed bool, stdin *nullio.Stdin, result <-chan ended, cause error) error {
	if !dead(cause) {
		if !typed {
			callCtx, cancel := context.WithTimeout(ctx, Grace)
			_ = e.Executor.Signal(callCtx, at, id, "SIGQUIT") // the kill below decides
			cancel()
		}
		t := time.NewTimer(Grace)
		defer t.Stop()
		select {
		case r := <-result:
			return e.certain(ctx, at, id, r, cause)
		case <-t.C:
		}
	}
	// Ending the connection has the native side kill the control group too; the call says whether it worked.
	var err error
	if !dead(cause) && !purged(cause) {
		err = e.kill(ctx, at, id)
	}
	stdin.CloseWithError(io.EOF)
	stopExec()
	<-result
	return err
}

// certain makes sure that a program whose stream broke is not left running.
func (e *Engine) certain(ctx context.Context, at Place, id string, r ended, cause error) error {
	if r.err == nil || purged(cause) {
		return nil
	}
	return e.kill(ctx, at, id)
}

// kill ends whatever is left of an execution; one that is not known any more has ended.
func (e *Engine) kill(ctx context.Context, at Place, id string) error {
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	if err := e.Executor.Kill(ctx, at, id); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// valve lets output through until ctx ends; from then on it swallows it, so that the exec can end.
type valve struct {
	ctx  <-chan struct{}
	flow *flow
	to   io.Writer
}

func (v *valve) Write(p []byte) (int, error) {
	select {
	case <-v.ctx:
		return len(p), nil
	default:
	}
	if _, err := v.to.Write(p[:v.flow.take(len(p))]); err != nil {
		return len(p), nil // the reader notices a lost client; the program's pipe must not fill up meanwhile
	}
	return len(p), nil
}

// flow counts the output of both streams. A cluster of our own ends a program that writes too much by itself; on any other this is what notices.
type flow struct {
	limit int64 // bytes; 0 = none
	over  func()

	mu   sync.Mutex
	used int64
}

// take grants as many of n bytes as the limit leaves.
func (f *flow) take(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	granted := n
	if f.limit > 0 {
		granted = int(min(int64(n), f.limit-f.used))
	}
	f.used += int64(granted)
	if granted < n {
		f.over()
	}
	return granted
}

// count is how much was let through.
func (f *flow) count() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

// full says that nothing more may come.
func (f *flow) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limit > 0 && f.used >= f.limit
}
