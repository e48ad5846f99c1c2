package nomad

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/runner/execution"
	"rockpool/internal/timeline"
)

// Inside are ways to a cluster in this very process that need no connection. Whatever is nil goes over the cluster's address, as everything does with any other
// cluster.
type Inside struct {
	Transport http.RoundTripper // of requests whose answer is no WebSocket
	Programs  Programs
	// Changes begins to tell what changes in a namespace, "" = the default one, from now on. Of these an Observer is told without a payload.
	Changes func(namespace string) (Changes, error)
}

// Programs starts programs in runners.
type Programs interface {
	// Start returns once the program runs. ErrElsewhere says that only the API can tell.
	Start(ctx context.Context, allocID, task string, p Program) (Running, error)
}

// ErrElsewhere says that an allocation is not in this process.
var ErrElsewhere = errors.New("the allocation is not in this process")

// Program is one to start. Nothing of it is quoted.
type Program struct {
	ID          string
	Argv        []string
	Env         []string
	User        string // "" = the task's own
	TTY         bool
	SplitStderr bool
	TimeLimit   time.Duration // 0 = none
	OutputLimit int64         // bytes; 0 = none
}

// Running is a program. Its output is read to the end, and Close comes last.
type Running interface {
	Stdin() io.WriteCloser
	Stdout() io.Reader
	Stderr() io.Reader // nil = it is part of Stdout
	Resize(width, height uint16) error
	Kill() error
	Done() <-chan struct{}
	// Exit is valid after Done. An error means that it is not known.
	Exit() (execution.Exit, error)
	Close()
}

// inside runs a command of a runner in this process; ErrElsewhere where it is not there.
func (c *Client) inside(ctx context.Context, at execution.Place, spec execution.Spec, stdio execution.Stdio) (execution.Exit, error) {
	call := timeline.From(ctx).Child(timeline.ExecCall)
	defer call.End()
	start := call.Child(timeline.NodeExec)
	p, err := c.opts.Inside.Programs.Start(timeline.With(ctx, start), at.AllocID, mainTask, Program{
		ID: spec.ID, Argv: shellCommand(spec.Command), Env: variables(spec.Env), User: userOf(spec.Privileged), TTY: spec.TTY, SplitStderr: spec.SplitStderr,
		TimeLimit: spec.TimeLimit, OutputLimit: spec.OutputLimit,
	})
	start.Fail(err)
	start.End()
	switch {
	case errors.Is(err, ErrElsewhere):
		return execution.Exit{}, err
	case err != nil && strings.Contains(fault.Public(err), "Unknown allocation"):
		return execution.Exit{}, gone(err)
	case err != nil:
		return execution.Exit{}, unknownOutcome(err)
	}
	defer p.Close()
	unhook := context.AfterFunc(ctx, func() { _ = p.Kill() })
	exit, err := carry(p, stdio)
	if !unhook() && err == nil { // it was killed, and what it ended with is not its own
		err = unknownOutcome(context.Cause(ctx))
	}
	return exit, err
}

func unknownOutcome(err error) error {
	return fault.Wrap(fault.Unavailable, fmt.Errorf("%w: %w", errNoExitCode, err), "the program's outcome is lost")
}

// carry connects stdio until the program has ended.
func carry(p Running, stdio execution.Stdio) (execution.Exit, error) {
	var (
		input, output sync.WaitGroup
		broken        [3]error // of stdout and stderr, each of its goroutine alone, and of stdin
	)
	takeNoMore := sync.OnceFunc(func() {
		if c, ok := stdio.Stdin.(io.Closer); ok {
			_ = c.Close()
		}
		input.Wait()
	})
	defer takeNoMore()
	if stdio.Stdin != nil {
		input.Go(func() {
			typed := p.Stdin()
			if broken[2] = lifecycle.Guard(func() error {
				_ = pour(typed, stdio.Stdin) // a program that takes no more tells its end by its exit
				return nil
			}); broken[2] != nil {
				_ = p.Kill()
			}
			_ = typed.Close()
		})
	}
	pump := func(i int, to io.Writer, from io.Reader) {
		if broken[i] = lifecycle.Guard(func() error { return pour(to, from) }); broken[i] != nil {
			_ = p.Kill()
			_, _ = io.Copy(io.Discard, from) // or it would not end
		}
	}
	if stderr := p.Stderr(); stderr != nil {
		output.Go(func() { pump(1, stdio.Stderr, stderr) })
	}
	if stdio.Resize == nil { // nothing else is to be done here: a goroutine less for each execution that waits
		pump(0, stdio.Stdout, p.Stdout())
	} else {
		output.Go(func() { pump(0, stdio.Stdout, p.Stdout()) })
	}
	for sizes := stdio.Resize; ; {
		select {
		case <-p.Done():
			output.Wait()
			takeNoMore()
			if err := errors.Join(broken[:]...); err != nil {
				return execution.Exit{}, fmt.Errorf("hand on input and output: %w", err)
			}
			exit, err := p.Exit()
			if err != nil {
				return execution.Exit{}, unknownOutcome(err)
			}
			return exit, nil
		case size, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			_ = p.Resize(size.Width, size.Height)
		}
	}
}

const (
	pourSmall = 512      // bytes that are moved at a time while there are few
	pourLarge = 32 << 10 // and while there are many
)

// larges are what is read into while there is much to read. A stream that waits holds none.
var larges = sync.Pool{New: func() any { return new([pourLarge]byte) }}

// pour copies until the end of from.
func pour(to io.Writer, from io.Reader) error {
	var (
		small [pourSmall]byte
		large *[pourLarge]byte
	)
	defer func() {
		if large != nil {
			larges.Put(large)
		}
	}()
	for {
		buf := small[:]
		if large != nil {
			buf = large[:]
		}
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
			switch {
			case large == nil && n == pourSmall:
				large = larges.Get().(*[pourLarge]byte)
			case large != nil && n < pourSmall:
				larges.Put(large)
				large = nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
