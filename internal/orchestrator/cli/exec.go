package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"rockpool/internal/lifecycle"
)

func allocExec(f *pflag.FlagSet) func(context.Context, *Call) error {
	interactive := f.BoolP("i", "i", true, "hand the standard input on")
	tty := f.BoolP("t", "t", true, "give the command a terminal; the default is whether this side has one")
	escape := f.StringP("e", "e", "~", "at the beginning of a line, with a dot: leave. \"none\" = there is no such character")
	named := f.String("task", "", "the task")
	return func(ctx context.Context, c *Call) error {
		a, err := c.alloc(ctx, c.Args[0])
		if err != nil {
			return err
		}
		t, err := task(a, *named)
		if err != nil {
			return err
		}
		in, isFile := c.In.(*os.File)
		out, outIsFile := c.Out.(*os.File)
		terminal := isFile && outIsFile && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd()))
		wantTTY := *tty
		if !f.Changed("t") {
			wantTTY = terminal
		}
		if wantTTY && !*interactive {
			return errors.New("a terminal (-t) needs the standard input (-i)")
		}
		var input io.Reader = strings.NewReader("")
		if *interactive {
			input = c.In
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		sizes := make(chan api.TerminalSize, 1)
		if wantTTY && terminal {
			restore, err := raw(in)
			if err != nil {
				return err
			}
			defer restore()
			if len(*escape) == 1 {
				input = &escaper{in: input, char: (*escape)[0], lineStart: true, leave: func() { cancel(errLeft) }}
			}
			stop := watchSize(ctx, out, sizes)
			defer stop()
		}
		code, err := c.api.Allocations().Exec(ctx, a, t, wantTTY, c.Args[1:], input, c.Out, c.Err, sizes, c.ofAlloc(ctx, a))
		switch {
		case errors.Is(context.Cause(ctx), errLeft):
			return failed(1, "left; the command is told to end")
		case err != nil:
			return err
		case code != 0:
			return failed(code, "")
		}
		return nil
	}
}

var errLeft = errors.New("the user left")

// raw puts the terminal into the mode in which every key goes to the other side.
func raw(in *os.File) (restore func(), err error) {
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(int(in.Fd()), old) }, nil
}

// watchSize tells the size of the terminal now and whenever it changes. The newest one counts.
func watchSize(ctx context.Context, out *os.File, sizes chan api.TerminalSize) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	changed <- syscall.SIGWINCH
	ctx, cancel := context.WithCancel(ctx)
	var tasks lifecycle.Tasks
	tasks.Go(func() {
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			w, h, err := term.GetSize(int(out.Fd()))
			if err != nil {
				continue
			}
			select {
			case <-sizes:
			default:
			}
			select {
			case sizes <- api.TerminalSize{Width: w, Height: h}:
			case <-ctx.Done():
			}
		}
	})
	return func() {
		signal.Stop(changed)
		cancel()
		_ = tasks.Wait(context.Background()) // it waits for nothing else
	}
}

// escaper watches input for the escape character and a dot at the beginning of a line. The character twice is the character once.
type escaper struct {
	in        io.Reader
	char      byte
	leave     func()
	lineStart bool
	pending   bool // the character was read and is held back
}

func (e *escaper) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return e.in.Read(p)
	}
	for {
		buf := make([]byte, len(p)-1) // room for the one that was held back
		n, err := e.in.Read(buf)
		out := p[:0]
		for _, b := range buf[:n] {
			switch {
			case e.pending && b == '.':
				e.leave()
				return len(out), io.EOF
			case e.pending && b == e.char:
				out = append(out, b)
				e.pending, e.lineStart = false, false
			case e.pending:
				out = append(out, e.char, b)
				e.pending, e.lineStart = false, newline(b)
			case e.lineStart && b == e.char:
				e.pending = true
			default:
				out = append(out, b)
				e.lineStart = newline(b)
			}
		}
		if err != nil && e.pending {
			out = append(out, e.char)
			e.pending = false
		}
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}

func newline(b byte) bool { return b == '\n' || b == '\r' }
