package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

var otherCommands = []Command{
	{Path: "eval status", Args: "<evaluation>", Min: 1, Max: 1, Remote: true, Setup: evalStatus, Short: "Show an evaluation and why it placed what where",
		Long: "Show an evaluation and why it placed what where.\nWith -monitor the exit code is 0 when everything is placed and healthy, 2 when not, 1 for an error."},
	{Path: "eval list", Remote: true, Setup: evalList, Short: "Show evaluations"},
	{Path: "monitor", Remote: true, Setup: monitor, Short: "Follow an agent's log"},
	{Path: "system gc", Remote: true, Setup: systemGC, Short: "Collect now what has ended"},
}

func evalStatus(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	follow := f.Bool("monitor", false, "follow it")
	verbose := f.Bool("verbose", false, "whole ids")
	return func(ctx context.Context, c *Call) error {
		q := c.query(ctx)
		q.Prefix, q.Namespace = c.Args[0], or(c.conf.Namespace, "*")
		list, _, err := c.api.Evaluations().List(q)
		if err != nil {
			return err
		}
		e, err := pick("evaluation", c.Args[0], list, func(e *api.Evaluation) string { return e.ID })
		if err != nil {
			return err
		}
		q = c.query(ctx)
		q.Namespace, q.Params = e.Namespace, map[string]string{"related": "true"}
		if e, _, err = c.api.Evaluations().Info(e.ID, q); err != nil {
			return err
		}
		switch {
		case *follow:
			return c.follow(ctx, e.ID, *verbose)
		case *asJSON:
			return printJSON(c.Out, e)
		}
		pairs(c.Out, "ID", e.ID, "Create Time", when(e.CreateTime), "Modify Time", when(e.ModifyTime), "Status", e.Status, "Status Description", or(e.StatusDescription, e.Status),
			"Type", e.Type, "Triggered By", e.TriggeredBy, "Job ID", or(e.JobID, "-"), "Namespace", e.Namespace, "Priority", itoa(e.Priority),
			"Placement Failures", fmt.Sprint(len(e.FailedTGAllocs) > 0), "Previous Eval", or(e.PreviousEval, "-"), "Next Eval", or(e.NextEval, "-"), "Blocked Eval", or(e.BlockedEval, "-"))
		if len(e.FailedTGAllocs) > 0 {
			fmt.Fprintln(c.Out, "\nWhy not everything was placed")
			explainFailures(c.Out, e.FailedTGAllocs)
		}
		allocs, err := c.placed(ctx, e)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.Out, "\nAllocations")
		c.allocs(allocs, *verbose)
		return nil
	}
}

func evalList(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	job := f.String("job", "", "only those of a job")
	status := f.String("status", "", "only those with a status")
	perPage := f.Int("per-page", 100, "how many")
	return func(ctx context.Context, c *Call) error {
		q := c.query(ctx)
		q.PerPage, q.Params = int32(*perPage), map[string]string{}
		if *job != "" {
			q.Params["job"] = *job
		}
		if *status != "" {
			q.Params["status"] = *status
		}
		list, meta, err := c.api.Evaluations().List(q)
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, list))
		}
		c.evals(list)
		if meta.NextToken != "" {
			fmt.Fprintln(c.Err, "There are more: raise -per-page")
		}
		return nil
	}
}

func monitor(f *pflag.FlagSet) func(context.Context, *Call) error {
	level := f.String("log-level", "info", "trace, debug, info, warn or error")
	asJSON := f.Bool("json", false, "lines of JSON")
	node := f.String("node-id", "", "the agent of a node")
	server := f.String("server-id", "", "a server's agent, by its name or \"leader\"")
	return func(ctx context.Context, c *Call) error {
		q := c.query(ctx)
		q.Params = map[string]string{"log_level": strings.ToLower(*level), "log_json": fmt.Sprint(*asJSON)}
		if *node != "" {
			q.Params["node_id"] = *node
		}
		if *server != "" {
			q.Params["server_id"] = *server
		}
		stop := make(chan struct{})
		defer close(stop)
		frames, errs := c.api.Agent().Monitor(stop, q)
		return c.copyFrames(ctx, frames, errs, 0)
	}
}

func systemGC(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(_ context.Context, c *Call) error {
		if err := c.api.System().GarbageCollect(); err != nil {
			return err
		}
		fmt.Fprintln(c.Out, "What has ended is collected")
		return nil
	}
}
