package nomad

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
	"rockpool/internal/shell"
)

// learner is the user that unprivileged programs run as. Images have it.
const learner = "user"

func userOf(privileged bool) string {
	if privileged {
		return ""
	}
	return learner
}

// Exec runs one command. Natively the node leaves its own variables out of the environment, and nothing is quoted.
func (c *Client) Exec(ctx context.Context, at execution.Place, spec execution.Spec, stdio execution.Stdio) (int, error) {
	if !c.Native() {
		return c.quoted(ctx, at, spec, stdio)
	}
	params := map[string]string{"rockpool_id": spec.ID, "rockpool_environ": environ(spec.Env), "rockpool_user": userOf(spec.Privileged)}
	if spec.SplitStderr {
		params["rockpool_split"] = "true"
	}
	if spec.TimeLimit > 0 {
		params["rockpool_time_limit_ms"] = strconv.FormatInt(max(1, spec.TimeLimit.Milliseconds()), 10)
	}
	if spec.OutputLimit > 0 {
		params["rockpool_output_limit"] = strconv.FormatInt(spec.OutputLimit, 10)
	}
	return c.stream(ctx, at, spec.TTY, []string{"/bin/bash", "-c", spec.Command}, stdio, params)
}

// environ is an environment as bytes: JSON could not hold every value.
func environ(env map[string]string) string {
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(env)) {
		b = append(append(append(append(b, name...), '='), env[name]...), 0)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// stream is one exec of nomad/api.
func (c *Client) stream(ctx context.Context, at execution.Place, tty bool, argv []string, stdio execution.Stdio, params map[string]string) (int, error) {
	q := c.query(ctx)
	q.Params = params
	sizes := make(chan api.TerminalSize, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case s, ok := <-stdio.Resize:
				if !ok {
					return
				}
				select {
				case sizes <- api.TerminalSize{Width: int(s.Width), Height: int(s.Height)}:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	})
	code, err := c.exec.Allocations().Exec(ctx, &api.Allocation{ID: at.AllocID, NodeID: at.NodeID}, mainTask, tty, argv,
		stdio.Stdin, stdio.Stdout, stdio.Stderr, sizes, q)
	close(done)
	wg.Wait()
	if err != nil {
		return 0, classify(err, "execute")
	}
	return code, nil
}

// readerGrace is how long the reader of stderr may go on after the command has ended: a child left behind may hold it open.
const readerGrace = time.Second

// quoted runs a command on a cluster that only has Nomad's exec. On a terminal its stderr goes through a FIFO that a second exec
// reads.
func (c *Client) quoted(ctx context.Context, at execution.Place, spec execution.Spec, stdio execution.Stdio) (int, error) {
	text := script(spec)
	if !spec.SplitStderr || !spec.TTY {
		return c.stream(ctx, at, spec.TTY, []string{"/bin/bash", "-c", text}, stdio, nil)
	}
	main, reader := throughFIFO(fmt.Sprintf("/tmp/stderr_%d.fifo", time.Now().UnixNano()), text)
	g, gctx := errgroup.WithContext(ctx)
	readCtx, stopReading := context.WithCancel(gctx)
	defer stopReading()
	stdin, end := io.Pipe() // nothing is written; its end lets the exec's reader go
	defer end.Close()
	g.Go(func() error {
		_, err := c.stream(readCtx, at, false, []string{"/bin/bash", "-c", reader},
			execution.Stdio{Stdin: stdin, Stdout: stdio.Stderr, Stderr: io.Discard}, nil)
		if readCtx.Err() != nil && gctx.Err() == nil {
			return nil // it was told to stop: a child left behind holds stderr open
		}
		return err
	})
	var code int
	g.Go(func() (err error) {
		code, err = c.stream(gctx, at, true, []string{"/bin/bash", "-c", main}, stdio, nil)
		t := time.AfterFunc(readerGrace, stopReading)
		context.AfterFunc(readCtx, func() { t.Stop() })
		return err
	})
	err := g.Wait()
	return code, err
}

// throughFIFO returns the scripts of both execs. Both make the FIFO, whoever is first; opening it makes each wait for the other without a
// loop; then it is unlinked, so that nothing stays behind however the run ends.
func throughFIFO(fifo, text string) (main, reader string) {
	name := shell.Quote(fifo)
	prepare := "mkfifo " + name + " 2>/dev/null; "
	return prepare + "exec 2>" + name + "; rm -f " + name + "; " + text, prepare + "exec cat " + name
}

// script is that of a command, every value quoted.
func script(spec execution.Spec) string {
	var b strings.Builder
	b.WriteString(`unset "${!NOMAD_@}"; exec `)
	if !spec.Privileged {
		b.WriteString("/sbin/setuser " + learner + " ")
	}
	b.WriteString("env")
	for _, name := range slices.Sorted(maps.Keys(spec.Env)) {
		b.WriteString(" " + shell.Quote(name+"="+spec.Env[name]))
	}
	b.WriteString(" /bin/bash -c " + shell.Quote(spec.Command))
	return b.String()
}

func executionPath(at execution.Place, id string) string {
	return "/v1/client/allocation/" + url.PathEscape(at.AllocID) + "/execution/" + url.PathEscape(id)
}

func task() url.Values { return url.Values{"task": {mainTask}} }

// Result asks for the outcome of an execution that has ended.
func (c *Client) Result(ctx context.Context, at execution.Place, id string) (execution.Result, error) {
	var r struct {
		State                                  string
		ExitCode, Signal                       int
		OOMKilled                              bool
		CPUTimeNS, WallTimeNS, PeakMemoryBytes int64
		Verdict                                string
		OutputBytes                            int64
	}
	if err := c.rawJSON(ctx, "GET", executionPath(at, id), task(), nil, &r, "read an execution's outcome"); err != nil {
		return execution.Result{}, err
	}
	if r.State != "exited" {
		return execution.Result{}, fault.New(fault.Unavailable, "the execution's outcome is not known: it is %s", r.State)
	}
	return execution.Result{
		ExitCode: r.ExitCode, OOMKilled: r.OOMKilled, Killed: r.Signal == 9,
		CPUTime: time.Duration(r.CPUTimeNS), WallTime: time.Duration(r.WallTimeNS), PeakMemory: r.PeakMemoryBytes,
		Verdict: r.Verdict, OutputBytes: r.OutputBytes,
	}, nil
}

// Signal sends a signal to an execution's main process.
func (c *Client) Signal(ctx context.Context, at execution.Place, id, signal string) error {
	if !c.Native() {
		return execution.ErrNotOffered
	}
	body, err := json.Marshal(struct{ Signal string }{signal})
	if err != nil {
		return fmt.Errorf("encode a signal: %w", err)
	}
	return c.rawJSON(ctx, "PUT", executionPath(at, id)+"/signal", task(), strings.NewReader(string(body)), &answer{}, "signal an execution")
}

// Kill ends an execution's control group.
func (c *Client) Kill(ctx context.Context, at execution.Place, id string) error {
	if !c.Native() {
		return execution.ErrNotOffered
	}
	return c.rawJSON(ctx, "DELETE", executionPath(at, id), task(), nil, &answer{}, "kill an execution")
}
