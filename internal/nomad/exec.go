package nomad

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
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
// Stdio.Stdin is closed in the end, where it can be.
func (c *Client) Exec(ctx context.Context, at execution.Place, spec execution.Spec, stdio execution.Stdio) (execution.Exit, error) {
	if !c.Native() {
		return c.quoted(ctx, at, spec, stdio)
	}
	if c.opts.Inside.Programs != nil {
		if exit, err := c.inside(ctx, at, spec, stdio); !errors.Is(err, ErrElsewhere) {
			return ended(ctx, exit, err)
		}
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
	s, err := c.attach(ctx, at, spec.TTY, shellCommand(spec.Command), params)
	if err != nil {
		return execution.Exit{}, err
	}
	code, err := s.run(stdio, nil, nil)
	return ended(ctx, execution.Exit{Code: code, Start: s.start}, err)
}

func shellCommand(command string) []string { return []string{"/bin/bash", "-c", command} }

// ended is how an exec came to its end. Where its context has ended, that is the reason.
func ended(ctx context.Context, exit execution.Exit, err error) (execution.Exit, error) {
	if err != nil && ctx.Err() != nil {
		return execution.Exit{}, fmt.Errorf("execute: %w", context.Cause(ctx))
	}
	return exit, err
}

// variables are those of an environment, by name, as NAME=value.
func variables(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// environ is an environment as bytes: JSON could not hold every value.
func environ(env map[string]string) string {
	var b []byte
	for _, v := range variables(env) {
		b = append(append(b, v...), 0)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func executionPath(at execution.Place, id string) string {
	return "/v1/client/allocation/" + url.PathEscape(at.AllocID) + "/execution/" + url.PathEscape(id)
}

func task() url.Values { return url.Values{"task": {mainTask}} }

// Result asks for the outcome of an execution that has ended.
func (c *Client) Result(ctx context.Context, at execution.Place, id string) (execution.Result, error) {
	if !c.Native() {
		return execution.Result{}, execution.ErrNotOffered
	}
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
		name := strings.TrimPrefix(signal, "SIG")
		if name == "" { // which would end everything
			return fault.New(fault.Invalid, "%q is the name of no signal", signal)
		}
		return c.end(ctx, at, id, name)
	}
	body, err := json.Marshal(struct{ Signal string }{signal})
	if err != nil {
		return fmt.Errorf("encode a signal: %w", err)
	}
	return c.rawJSON(ctx, "PUT", executionPath(at, id)+"/signal", task(), strings.NewReader(string(body)), &answer{}, "signal an execution")
}

// Kill ends an execution's control group, or where there is none everything that it started and that can be found.
func (c *Client) Kill(ctx context.Context, at execution.Place, id string) error {
	if !c.Native() {
		return c.end(ctx, at, id, "")
	}
	return c.rawJSON(ctx, "DELETE", executionPath(at, id), task(), nil, &answer{}, "kill an execution")
}
