package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

var allocCommands = []Command{
	{Path: "alloc status", Args: "[<allocation>]", Max: 1, Remote: true, Setup: allocStatus, Short: "Show allocations, or one of them"},
	{Path: "alloc exec", Args: "<allocation> <command> [<argument>...]", Min: 2, Max: -1, Remote: true, Program: true, Setup: allocExec,
		Short: "Run a command in a task", Long: "Run a command in a running task. The exit code is the command's."},
	{Path: "alloc logs", Args: "<allocation> [<task>]", Min: 1, Max: 2, Remote: true, Setup: allocLogs, Short: "Show what a task wrote"},
	{Path: "alloc stop", Args: "<allocation>", Min: 1, Max: 1, Remote: true, Setup: allocStop, Short: "Stop an allocation, which its job replaces"},
	{Path: "alloc signal", Args: "<allocation> [<task>]", Min: 1, Max: 2, Remote: true, Setup: allocSignal, Short: "Send a signal to tasks"},
	{Path: "alloc restart", Args: "<allocation> [<task>]", Min: 1, Max: 2, Remote: true, Setup: allocRestart, Short: "Restart tasks in place"},
}

// alloc finds an allocation by the beginning of its id.
func (c *Call) alloc(ctx context.Context, prefix string) (*api.Allocation, error) {
	q := c.query(ctx)
	q.Prefix, q.Namespace = prefix, or(c.conf.Namespace, "*")
	list, _, err := c.api.Allocations().List(q)
	if err != nil {
		return nil, err
	}
	stub, err := pick("allocation", prefix, list, func(a *api.AllocationListStub) string { return a.ID })
	if err != nil {
		return nil, err
	}
	q = c.query(ctx)
	q.Namespace = stub.Namespace
	a, _, err := c.api.Allocations().Info(stub.ID, q)
	return a, err
}

func (c *Call) ofAlloc(ctx context.Context, a *api.Allocation) *api.QueryOptions {
	q := c.query(ctx)
	q.Namespace = a.Namespace
	return q
}

// task is the one that is named, or the only one there is.
func task(a *api.Allocation, named string) (string, error) {
	g := a.GetTaskGroup()
	if g == nil {
		return named, nil
	}
	names := make([]string, 0, len(g.Tasks))
	for _, t := range g.Tasks {
		names = append(names, t.Name)
	}
	switch {
	case named == "" && len(names) == 1:
		return names[0], nil
	case named == "":
		return "", fmt.Errorf("the allocation has several tasks, name one: %s", strings.Join(names, ", "))
	case !slices.Contains(names, named):
		return "", fmt.Errorf("the allocation has no task %q, but: %s", named, strings.Join(names, ", "))
	}
	return named, nil
}

func allocStatus(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	verbose := f.Bool("verbose", false, "whole ids, scores of nodes")
	return func(ctx context.Context, c *Call) error {
		if len(c.Args) == 0 {
			list, _, err := c.api.Allocations().List(c.query(ctx))
			if err != nil || *asJSON {
				return errors.Join(err, printIf(c, err == nil, list))
			}
			c.allocs(list, *verbose)
			return nil
		}
		a, err := c.alloc(ctx, c.Args[0])
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, a))
		}
		pairs(c.Out, "ID", a.ID, "Eval ID", c.id(a.EvalID, *verbose), "Name", a.Name, "Node ID", c.id(a.NodeID, *verbose), "Node Name", a.NodeName,
			"Job ID", a.JobID, "Client Status", a.ClientStatus, "Client Description", or(a.ClientDescription, "-"), "Desired Status", a.DesiredStatus,
			"Desired Description", or(a.DesiredDescription, "-"), "Created", when(a.CreateTime), "Modified", when(a.ModifyTime))
		if a.AllocatedResources != nil {
			for _, p := range a.AllocatedResources.Shared.Ports {
				fmt.Fprintf(c.Out, "Port %s: %s:%d -> %d\n", p.Label, p.HostIP, p.Value, p.To)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(a.TaskStates)) {
			s := a.TaskStates[name]
			fmt.Fprintf(c.Out, "\nTask %q is %s, restarts: %d\n", name, s.State, s.Restarts)
			rows := [][]string{{"Time", "Type", "Description"}}
			for _, e := range slices.Backward(s.Events) {
				rows = append(rows, []string{time.Unix(0, e.Time).UTC().Format(time.RFC3339), e.Type, e.DisplayMessage})
			}
			table(c.Out, rows)
		}
		if *verbose && a.Metrics != nil {
			fmt.Fprintln(c.Out, "\nScores of nodes when it was placed")
			for _, s := range a.Metrics.ScoreMetaData {
				fmt.Fprintf(c.Out, "%s  %.3f  %v\n", s.NodeID, s.NormScore, s.Scores)
			}
		}
		return nil
	}
}

func allocLogs(f *pflag.FlagSet) func(context.Context, *Call) error {
	stderr := f.Bool("stderr", false, "the standard error instead of the standard output")
	follow := f.BoolP("f", "f", false, "go on with what comes")
	tail := f.Bool("tail", false, "only the end")
	bytes := f.Int64P("c", "c", 0, "with -tail: bytes of the end")
	lines := f.IntP("n", "n", 0, "with -tail: lines of the end; 10 where nothing is said")
	named := f.String("task", "", "the task")
	return func(ctx context.Context, c *Call) error {
		if len(c.Args) == 2 {
			*named = c.Args[1]
		}
		a, err := c.alloc(ctx, c.Args[0])
		if err != nil {
			return err
		}
		t, err := task(a, *named)
		if err != nil {
			return err
		}
		stream, origin, offset := "stdout", "start", int64(0)
		if *stderr {
			stream = "stderr"
		}
		keep := 0
		if *tail || *bytes > 0 || *lines > 0 {
			origin, offset = "end", *bytes
			if *bytes == 0 {
				if keep = *lines; keep == 0 {
					keep = 10
				}
				offset = int64(keep) * 120 // a guess that usually is enough; what is too much is cut
			}
		}
		cancel := make(chan struct{})
		defer close(cancel)
		frames, errs := c.api.AllocFS().Logs(a, *follow, t, stream, origin, offset, cancel, c.ofAlloc(ctx, a))
		return c.copyFrames(ctx, frames, errs, keep)
	}
}

// copyFrames writes a stream out. keep > 0 leaves out what of the first frame is more than that many lines.
func (c *Call) copyFrames(ctx context.Context, frames <-chan *api.StreamFrame, errs <-chan error, keep int) error {
	if frames == nil {
		return <-errs
	}
	for {
		select {
		case fr, ok := <-frames:
			if !ok {
				select {
				case err := <-errs:
					return err
				default:
					return nil
				}
			}
			data := fr.Data
			if keep > 0 && len(data) > 0 {
				data, keep = lastLines(data, keep), 0
			}
			if _, err := c.Out.Write(data); err != nil {
				return err
			}
		case err := <-errs:
			// What came before the error comes first.
			for fr := range frames {
				if _, werr := c.Out.Write(fr.Data); werr != nil {
					return werr
				}
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func lastLines(data []byte, n int) []byte {
	for i := len(data) - 2; i >= 0; i-- {
		if data[i] == '\n' {
			if n--; n == 0 {
				return data[i+1:]
			}
		}
	}
	return data
}

func allocStop(f *pflag.FlagSet) func(context.Context, *Call) error {
	detach := f.Bool("detach", false, "do not follow it")
	verbose := f.Bool("verbose", false, "whole ids")
	noDelay := f.Bool("no-shutdown-delay", false, "do not wait out the tasks' shutdown delays")
	return func(ctx context.Context, c *Call) error {
		a, err := c.alloc(ctx, c.Args[0])
		if err != nil {
			return err
		}
		q := c.ofAlloc(ctx, a)
		if *noDelay {
			q.Params = map[string]string{"no_shutdown_delay": "true"}
		}
		r, err := c.api.Allocations().Stop(a, q)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "Allocation %s is told to stop\n", a.ID)
		if *detach || r.EvalID == "" {
			return nil
		}
		return c.follow(ctx, r.EvalID, *verbose)
	}
}

func allocSignal(f *pflag.FlagSet) func(context.Context, *Call) error {
	signal := f.StringP("s", "s", "SIGKILL", "the signal")
	named := f.String("task", "", "the task; empty = all")
	return func(ctx context.Context, c *Call) error {
		a, err := c.alloc(ctx, c.Args[0])
		if err != nil {
			return err
		}
		if len(c.Args) == 2 {
			*named = c.Args[1]
		}
		if *named != "" {
			if _, err := task(a, *named); err != nil {
				return err
			}
		}
		return c.api.Allocations().Signal(a, c.ofAlloc(ctx, a), *named, *signal)
	}
}

func allocRestart(f *pflag.FlagSet) func(context.Context, *Call) error {
	named := f.String("task", "", "the task; empty = those that run")
	all := f.Bool("all-tasks", false, "also tasks that have ended")
	return func(ctx context.Context, c *Call) error {
		a, err := c.alloc(ctx, c.Args[0])
		if err != nil {
			return err
		}
		if len(c.Args) == 2 {
			*named = c.Args[1]
		}
		q := c.ofAlloc(ctx, a)
		switch {
		case *all && *named != "":
			return errors.New("-all-tasks and a task do not go together")
		case *all:
			return c.api.Allocations().RestartAllTasks(a, q)
		case *named != "":
			if _, err := task(a, *named); err != nil {
				return err
			}
		}
		return c.api.Allocations().Restart(a, *named, q)
	}
}
