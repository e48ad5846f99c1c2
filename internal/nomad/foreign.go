package nomad

import (
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
	"rockpool/internal/shell"
)

// What Nomad itself lacks is done by scripts in the runner, which need no more than the contract asks of images. They are constants; every value is a word that
// package shell quoted, in front of them.
//
//go:embed scripts
var scripts embed.FS

func text(name string) string {
	data, err := scripts.ReadFile("scripts/" + name)
	if err != nil {
		panic(err) // the name is one of ours
	}
	return string(data)
}

var (
	runScript    = text("run.sh")
	stderrScript = text("stderr.sh")
	endScript    = text("end.sh")
	applyScript  = text("apply.sh")
	listScript   = text("list.sh")
	openScript   = text("open.sh")
)

// maxScript is the longest argument that Linux takes.
const maxScript = 128<<10 - 1

const (
	proofTime = 5 * time.Second // between the records of the streams of one execution, and from the last one to the end of the exec
	stopTime  = 10 * time.Second
)

// bash is the argv of a script with values. Privileged mode keeps files and functions of the environment out of it; the main script of an execution is found by its
// first line.
func bash(head, script string, values ...string) ([]string, error) {
	words, err := shell.Quote(values...)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "a command, a path or a variable has a NUL byte, which no program can be told")
	}
	whole := head + "set -- " + words + "\n" + script
	if len(whole) > maxScript {
		return nil, fault.New(fault.Invalid, "the command and its environment take %d bytes, at most %d can be passed on: put them into files", len(whole), maxScript)
	}
	return []string{"/bin/bash", "-p", "-c", whole}, nil
}

// marked is the argv of the script that runs a command.
func marked(mark, fifo, user, streams string, argv ...string) ([]string, error) {
	return bash("# main "+mark+"\n", runScript, append([]string{mark, fifo, user, streams}, argv...)...)
}

// markOf tells the scripts of one execution from all others, and cannot be guessed.
func (c *Client) markOf(id string) string {
	sum := sha256.Sum256([]byte(c.secret + id))
	return hex.EncodeToString(sum[:16])
}

// quoted runs a command on a cluster that only has Nomad's exec. On a terminal its stderr goes through a FIFO that a second exec reads. An exit code is only taken
// with the proof that all output came before it.
func (c *Client) quoted(ctx context.Context, at execution.Place, spec execution.Spec, stdio execution.Stdio) (execution.Exit, error) {
	fifo := ""
	if spec.SplitStderr && spec.TTY {
		fifo = fmt.Sprintf("/tmp/stderr_%d.fifo", time.Now().UnixNano())
	}
	mark := c.markOf(spec.ID)
	argv, err := scripted(mark, fifo, spec)
	if err != nil {
		return execution.Exit{}, err
	}

	exit, err := c.proven(ctx, at, spec, stdio, mark, fifo, argv)
	if err != nil && ctx.Err() != nil {
		return execution.Exit{}, fmt.Errorf("execute: %w", context.Cause(ctx)) // who ended it sees to what is left
	}
	if err != nil {
		// Nomad leaves a program alone whose connection broke.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if e := c.end(stop, at, spec.ID, ""); e != nil && !fault.Is(e, fault.Gone) {
			err = errors.Join(err, fmt.Errorf("%w: %w", execution.ErrLeftRunning, e))
		}
		return execution.Exit{}, err
	}
	return exit, nil
}

// scripted is the argv that runs the command of spec.
func scripted(mark, fifo string, spec execution.Spec) ([]string, error) {
	var env []string
	for _, name := range slices.Sorted(maps.Keys(spec.Env)) {
		env = append(env, name+"="+spec.Env[name])
	}
	streams := ""
	if !spec.TTY {
		streams = "deaf"
	}
	return marked(mark, fifo, userOf(spec.Privileged), streams, append(env, "/bin/bash", "-c", spec.Command)...)
}

// Fits says why a command and its environment cannot be passed on, as Exec would: elsewhere than natively they share one argument with a script.
func (c *Client) Fits(r execution.Request) error {
	if c.Native() {
		return nil
	}
	const fifo = "/tmp/stderr_0000000000000000000.fifo" // as long as any
	_, err := scripted(c.markOf(""), fifo, execution.Spec{Command: r.Command, Env: r.Environ(), Privileged: r.Privileged, TTY: r.TTY})
	return err
}

// proven runs both execs of a command until its exit code is certain or is lost.
func (c *Client) proven(ctx context.Context, at execution.Place, spec execution.Spec, stdio execution.Stdio, mark, fifo string, argv []string) (execution.Exit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stdout := newProof(mark, stdio.Stdout, true)
	stderr := newProof(mark, stdio.Stderr, false)
	var rest io.Writer = stderr
	proofs := []*proof{stdout}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	reading := make(chan struct{})
	switch {
	case fifo != "":
		rest, proofs = io.Discard, []*proof{stdout, stderr} // a terminal has no stderr
		wg.Go(func() {
			defer close(reading)
			if err := c.readFIFO(ctx, at, mark, fifo, stderr); err != nil {
				awaitBegun(ctx, stdout)
				cancel(fmt.Errorf("read the program's stderr: %w", err)) // it would wait for a reader without end
			}
		})
	case !spec.TTY:
		proofs = []*proof{stdout, stderr}
	}
	s, err := c.begin(ctx, at, spec.TTY, argv)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return execution.Exit{}, err
	}
	ended := make(chan struct{})
	defer close(ended)
	wg.Go(func() { acknowledge(s, mark, ended, proofs...) })
	var eof []byte
	if spec.TTY {
		eof = []byte{4} // the end of a terminal's input is a key; its other end stays open for us
	}
	code, err := s.run(execution.Stdio{Stdin: stdio.Stdin, Stdout: stdout, Stderr: rest, Resize: stdio.Resize}, eof, stdout.begun)
	if cause := context.Cause(ctx); cause != nil {
		return execution.Exit{}, cause
	}
	if fifo != "" {
		// A shell that was killed wrote no record; the reader then sees the end of the FIFO, if nothing that was left behind holds it.
		within := proofTime
		if end, _ := stdout.state(); end == "" {
			within = time.Second / 2
		}
		t := time.NewTimer(within)
		select {
		case <-stderr.over:
		case <-reading:
		case <-t.C:
		}
		t.Stop()
		cancel(nil)
		<-reading
	}
	if e := errors.Join(stdout.flush(), stderr.flush()); e != nil {
		return execution.Exit{}, fmt.Errorf("hand on output: %w", e)
	}
	return outcome(code, err, stdout, proofs)
}

// awaitBegun waits until a command that was asked for has begun: one that has not cannot be found yet by who ends it, and would begin then.
func awaitBegun(ctx context.Context, stdout *proof) {
	t := time.NewTimer(proofTime)
	defer t.Stop()
	select {
	case <-stdout.begun:
	case <-ctx.Done():
	case <-t.C:
	}
}

// outcome says what the end of an exec and the records of its streams mean together.
func outcome(code int, err error, stdout *proof, proofs []*proof) (execution.Exit, error) {
	end, began := stdout.state()
	if reason, ok := strings.CutPrefix(end, "fail:"); ok {
		return execution.Exit{}, fault.New(fault.Internal, "the program could not be started: %s", reason)
	}
	told, proved := exitOf(end)
	silent := true // our shell told of no exit; the reader of the FIFO may have told that it saw its end
	for _, p := range proofs {
		end, _ := p.state()
		_, ok := exitOf(end)
		proved = proved && ok
		silent = silent && !ok && !p.inside
	}
	switch {
	case proved && err == nil && code != told:
		return execution.Exit{}, fault.Wrap(fault.Unavailable, errNoExitCode, "the program's outcome is lost: it was told as %d and as %d", told, code)
	case proved && (err == nil || errors.Is(err, errNoExitCode)):
		return execution.Exit{Code: told}, nil // all output came, and the code was in it
	case err != nil:
		return execution.Exit{}, err
	case !began:
		return execution.Exit{}, fault.New(fault.Internal, "the program could not be started (code %d): %s", code, stdout.complaint())
	case silent && (code == 137 || code == 128):
		return execution.Exit{Code: code, Unproved: true}, nil // our shell was killed together with the program, and perhaps with the whole runner
	}
	return execution.Exit{}, fault.Wrap(fault.Unavailable, errNoExitCode, "the program ended with %d, but its output was cut off", code)
}

// acknowledge tells the script that all its output came, so that it need not wait, and bounds how long the exec may then go on.
func acknowledge(s *session, mark string, ended <-chan struct{}, proofs ...*proof) {
	for _, p := range proofs {
		select {
		case <-p.over:
		case <-ended:
			return
		}
	}
	t := time.AfterFunc(proofTime, func() {
		s.late.Store(true)
		_ = s.conn.Close() // lets go of input too
	})
	defer t.Stop()
	_ = s.input([]byte("\n" + mark + "\n"))
	<-ended
}

// readFIFO copies a program's stderr until its record, or until ctx ends.
func (c *Client) readFIFO(ctx context.Context, at execution.Place, mark, fifo string, to *proof) error {
	argv, err := bash("", stderrScript, mark, fifo)
	if err != nil {
		return err
	}
	s, err := c.attach(ctx, at, false, argv, nil)
	if err != nil {
		return err
	}
	_, err = s.run(execution.Stdio{Stdout: to, Stderr: io.Discard}, nil, nil)
	end, _ := to.state()
	if end != "" || ctx.Err() != nil {
		return nil
	}
	return cmp.Or(err, errors.New("its reader ended"))
}

// end signals an execution's command or, with "", ends all that belongs to it.
func (c *Client) end(ctx context.Context, at execution.Place, id, signal string) error {
	mark := c.markOf(id)
	argv, err := bash("", endScript, mark[:16], mark[16:], signal)
	if err != nil {
		return err
	}
	h, err := c.help(ctx, at, false, argv, nil)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, h)
	code, stderr, err := h.wait()
	switch {
	case err != nil:
		return err
	case code != 0 && signal != "":
		return fault.New(fault.NotFound, "there is no such execution")
	case code != 0:
		return fault.New(fault.Internal, "an execution could not be ended (code %d): %s", code, stderr)
	}
	return nil
}

// helper is a script that runs in a runner. It is read from, and then waited for.
type helper struct {
	*io.PipeReader
	cancel context.CancelFunc
	wg     sync.WaitGroup
	stderr limited
	code   int
	err    error
}

// help starts a command that is not the client's: argv runs as the container's user, or as the unprivileged one.
func (c *Client) help(ctx context.Context, at execution.Place, unprivileged bool, argv []string, stdin io.Reader) (*helper, error) {
	mark := c.markOf("helper " + strconv.FormatUint(c.helpers.Add(1), 10))
	argv, err := marked(mark, "", userOf(!unprivileged), "both", argv...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.begin(ctx, at, false, argv)
	if err != nil {
		cancel()
		return nil, err
	}
	h := &helper{cancel: cancel}
	var w *io.PipeWriter
	h.PipeReader, w = io.Pipe()
	h.wg.Go(func() {
		defer cancel()
		stdout, stderr := newProof(mark, w, true), newProof(mark, &h.stderr, false)
		var watch sync.WaitGroup
		ended := make(chan struct{})
		watch.Go(func() { acknowledge(s, mark, ended, stdout, stderr) })
		code, err := s.run(execution.Stdio{Stdin: stdin, Stdout: stdout, Stderr: stderr}, nil, stdout.begun)
		close(ended)
		watch.Wait()
		_ = stderr.flush()
		exit, err := outcome(code, err, stdout, []*proof{stdout, stderr})
		h.code, h.err = exit.Code, err
		if h.err != nil && ctx.Err() != nil {
			h.err = fmt.Errorf("execute: %w", context.Cause(ctx))
		}
		_ = w.CloseWithError(h.err) // nil = EOF
	})
	return h, nil
}

// wait lets go of what was not read yet and gives the outcome. An error means that it is not known.
func (h *helper) wait() (code int, stderr string, err error) {
	_ = h.PipeReader.Close()
	h.wg.Wait()
	return h.code, strings.TrimSpace(h.stderr.String()), h.err
}

// stop ends the connection and waits for that.
func (h *helper) stop() {
	h.cancel()
	_, _, _ = h.wait()
}

// limited keeps the beginning of what is written.
type limited struct{ strings.Builder }

const maxComplaint = 16 << 10

func (l *limited) Write(p []byte) (int, error) {
	_, _ = l.Builder.Write(p[:min(len(p), max(0, maxComplaint-l.Len()))])
	return len(p), nil
}
