package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

// maxJobFile bounds a job file and its variables, in bytes.
const maxJobFile = 4 << 20

var jobCommands = []Command{
	{Path: "job run", Args: "<file>", Min: 1, Max: 1, Remote: true, Setup: jobRun, Short: "Register a job and follow it until it runs",
		Long: "Register a job from a file (HCL, or JSON with -json; - is the standard input) and follow it.\n" +
			"Exit codes: 0 everything is placed and healthy, 2 something is not, 1 an error."},
	{Path: "job status", Args: "[<job>]", Max: 1, Remote: true, Setup: jobStatus, Short: "Show jobs, or one of them"},
	{Path: "job stop", Args: "<job>", Min: 1, Max: 1, Remote: true, Setup: jobStop, Short: "Stop a job"},
	{Path: "job plan", Args: "<file>", Min: 1, Max: 1, Remote: true, Setup: jobPlan, Short: "Show what registering a job would change",
		Long: "Show what registering a job would change.\nExit codes: 0 nothing, 1 allocations would be made or ended, 255 an error."},
	{Path: "job validate", Args: "<file>", Min: 1, Max: 1, Remote: true, Setup: jobValidate, Short: "Check a job file"},
	{Path: "job inspect", Args: "<job>", Min: 1, Max: 1, Remote: true, Setup: jobInspect, Short: "Show a job as JSON"},
	{Path: "job dispatch", Args: "<job> [<payload file>]", Min: 1, Max: 2, Remote: true, Setup: jobDispatch, Short: "Start an instance of a parameterized job"},
	{Path: "job history", Args: "<job>", Min: 1, Max: 1, Remote: true, Setup: jobHistory, Short: "Show a job's versions"},
	{Path: "job eval", Args: "<job>", Min: 1, Max: 1, Remote: true, Setup: jobEval, Short: "Have a job evaluated anew"},
}

// source are the flags that say what a job file means.
type source struct {
	json     bool
	vars     []string
	varFiles []string
}

func (s *source) flags(f *pflag.FlagSet) {
	f.BoolVar(&s.json, "json", false, "the file is JSON, as \"job inspect\" writes it")
	f.StringArrayVar(&s.vars, "var", nil, "name=value: of a variable of the file")
	f.StringArrayVar(&s.varFiles, "var-file", nil, "file with values of variables")
}

// read makes a job of a file. HCL is sent to a server to be parsed.
func (s *source) read(c *Call, path string) (*api.Job, *api.JobSubmission, error) {
	text, err := c.input(path, maxJobFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the job file: %w", err)
	}
	if s.json {
		var wrapped struct{ Job *api.Job }
		if err := json.Unmarshal(text, &wrapped); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		if wrapped.Job == nil {
			wrapped.Job = &api.Job{}
			if err := json.Unmarshal(text, wrapped.Job); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		if wrapped.Job.ID == nil {
			return nil, nil, fmt.Errorf("%s: the job has no ID", path)
		}
		return wrapped.Job, &api.JobSubmission{Source: string(text), Format: "json"}, nil
	}
	values, flags, err := s.values(c)
	if err != nil {
		return nil, nil, err
	}
	all := values + assignments(flags)
	job, err := c.api.Jobs().ParseHCLOpts(&api.JobsParseRequest{JobHCL: string(text), Variables: all})
	if err != nil {
		if r, ok := errors.AsType[api.UnexpectedResponseError](err); ok && r.StatusCode() == 400 {
			return nil, nil, errors.New(strings.ReplaceAll(r.Body(), "job.hcl:", path+":"))
		}
		return nil, nil, err
	}
	return job, &api.JobSubmission{Source: string(text), Format: "hcl2", VariableFlags: flags, Variables: values}, nil
}

// values collects the files of variables, and then the variables of the environment (NOMAD_VAR_name) and the flags, which win.
func (s *source) values(c *Call) (files string, flags map[string]string, err error) {
	for _, p := range s.varFiles {
		text, err := c.input(p, maxJobFile)
		if err != nil {
			return "", nil, fmt.Errorf("read variables: %w", err)
		}
		files += strings.TrimRight(string(text), "\n") + "\n"
	}
	flags = map[string]string{}
	for _, kv := range os.Environ() {
		if name, ours := strings.CutPrefix(kv, "NOMAD_VAR_"); ours {
			k, v, _ := strings.Cut(name, "=")
			flags[k] = v
		}
	}
	for _, kv := range s.vars {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || !identifier(k) {
			return "", nil, fmt.Errorf("-var %q: name=value is needed", kv)
		}
		flags[k] = v
	}
	return files, flags, nil
}

func identifier(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r != '-' && (r < '0' || r > '9')) {
			return false
		}
	}
	return s != ""
}

// assignments writes flags as a file of variables would have them: lists and maps as they are, everything else as a text, which the variable's type then
// converts.
func assignments(flags map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(flags)) {
		v := flags[k]
		if !strings.HasPrefix(v, "[") && !strings.HasPrefix(v, "{") {
			v = quote(v)
		}
		fmt.Fprintf(&b, "%s = %s\n", k, v)
	}
	return b.String()
}

// quote writes a text that HCL reads back unchanged.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "${", "$${", "%{", "%%{").Replace(s) + `"`
}

func jobRun(f *pflag.FlagSet) func(context.Context, *Call) error {
	var src source
	src.flags(f)
	detach := f.Bool("detach", false, "do not follow it")
	verbose := f.Bool("verbose", false, "whole ids")
	check := f.String("check-index", "", "register only if the job's modify index is this; 0 = only a new job")
	preserve := f.Bool("preserve-counts", false, "keep the counts that the job has now")
	priority := f.Int("eval-priority", 0, "of the evaluation; 0 = the job's")
	return func(ctx context.Context, c *Call) error {
		job, sub, err := src.read(c, c.Args[0])
		if err != nil {
			return err
		}
		opts := &api.RegisterOptions{PreserveCounts: *preserve, EvalPriority: *priority, Submission: sub}
		if *check != "" {
			if opts.ModifyIndex, err = strconv.ParseUint(*check, 10, 64); err != nil {
				return fmt.Errorf("-check-index: %q is not an index", *check)
			}
			opts.EnforceIndex = true
		}
		resp, _, err := c.api.Jobs().RegisterOpts(job, opts, c.write(ctx))
		if err != nil {
			return err
		}
		c.warn(resp.Warnings)
		if resp.EvalID == "" {
			fmt.Fprintf(c.Out, "Job %q is registered. It starts nothing by itself: it is periodic or parameterized.\n", *job.ID)
			return nil
		}
		fmt.Fprintf(c.Out, "Job %q is registered, evaluation %s\n", *job.ID, resp.EvalID)
		if *detach {
			return nil
		}
		return c.follow(ctx, resp.EvalID, *verbose)
	}
}

func (c *Call) warn(text string) {
	if text = strings.TrimSpace(text); text != "" {
		fmt.Fprintf(c.Err, "Warning: %s\n", text)
	}
}

// job finds a job by the beginning of its id.
func (c *Call) job(ctx context.Context, prefix string) (*api.Job, error) {
	q := c.query(ctx)
	q.Prefix = prefix
	list, _, err := c.api.Jobs().List(q)
	if err != nil {
		return nil, err
	}
	stub, err := pick("job", prefix, list, func(j *api.JobListStub) string { return j.ID })
	if err != nil {
		return nil, err
	}
	q = c.query(ctx)
	q.Namespace = stub.Namespace
	job, _, err := c.api.Jobs().Info(stub.ID, q)
	return job, err
}

func (c *Call) in(ctx context.Context, j *api.Job) (*api.QueryOptions, *api.WriteOptions) {
	q, w := c.query(ctx), c.write(ctx)
	q.Namespace, w.Namespace = val(j.Namespace), val(j.Namespace)
	return q, w
}

func jobStatus(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	all := f.Bool("all-allocs", false, "also allocations of earlier jobs with this id")
	verbose := f.Bool("verbose", false, "whole ids, and evaluations")
	return func(ctx context.Context, c *Call) error {
		if len(c.Args) == 0 {
			list, _, err := c.api.Jobs().List(c.query(ctx))
			if err != nil || *asJSON {
				return errors.Join(err, printIf(c, err == nil, list))
			}
			if len(list) == 0 {
				fmt.Fprintln(c.Out, "No running jobs")
				return nil
			}
			rows := [][]string{{"ID", "Type", "Priority", "Status", "Submit Date"}}
			for _, j := range list {
				status := j.Status
				if j.Stop {
					status += " (stopped)"
				}
				rows = append(rows, []string{j.ID, jobType(j.Type, j.Periodic, j.ParameterizedJob), itoa(j.Priority), status, when(j.SubmitTime)})
			}
			table(c.Out, rows)
			return nil
		}
		j, err := c.job(ctx, c.Args[0])
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, j))
		}
		return c.describe(ctx, j, *all, *verbose)
	}
}

func printIf(c *Call, ok bool, v any) error {
	if !ok {
		return nil
	}
	return printJSON(c.Out, v)
}

func jobType(t string, periodic, parameterized bool) string {
	if periodic {
		t += "/periodic"
	}
	if parameterized {
		t += "/parameterized"
	}
	return t
}

func (c *Call) describe(ctx context.Context, j *api.Job, all, verbose bool) error {
	q, _ := c.in(ctx, j)
	id := val(j.ID)
	pairs(c.Out, "ID", id, "Name", val(j.Name), "Submit Date", when(val(j.SubmitTime)), "Type", jobType(val(j.Type), j.IsPeriodic(), j.IsParameterized()),
		"Priority", itoa(val(j.Priority)), "Datacenters", strings.Join(j.Datacenters, ","), "Namespace", val(j.Namespace), "Node Pool", val(j.NodePool),
		"Status", val(j.Status)+stopped(val(j.Stop)), "Version", itoa(val(j.Version)))
	if sum, _, err := c.api.Jobs().Summary(id, q); err == nil {
		fmt.Fprintln(c.Out, "\nSummary")
		rows := [][]string{{"Task Group", "Queued", "Starting", "Running", "Failed", "Complete", "Lost", "Unknown"}}
		for _, g := range slices.Sorted(maps.Keys(sum.Summary)) {
			s := sum.Summary[g]
			rows = append(rows, []string{g, itoa(s.Queued), itoa(s.Starting), itoa(s.Running), itoa(s.Failed), itoa(s.Complete), itoa(s.Lost), itoa(s.Unknown)})
		}
		table(c.Out, rows)
	}
	evals, _, err := c.api.Jobs().Evaluations(id, q)
	if err != nil {
		return err
	}
	slices.SortFunc(evals, func(a, b *api.Evaluation) int { return int(b.CreateIndex) - int(a.CreateIndex) })
	if verbose {
		fmt.Fprintln(c.Out, "\nEvaluations")
		c.evals(evals)
	}
	for _, e := range evals {
		if e.Status == "blocked" {
			fmt.Fprintln(c.Out, "\nWhy it is not all placed")
			explainFailures(c.Out, e.FailedTGAllocs)
			break
		}
	}
	if d, _, err := c.api.Jobs().LatestDeployment(id, q); err == nil && d != nil {
		fmt.Fprintln(c.Out, "\nLatest Deployment")
		c.deployment(d, verbose)
	}
	allocs, _, err := c.api.Jobs().Allocations(id, all, q)
	if err != nil {
		return err
	}
	fmt.Fprintln(c.Out, "\nAllocations")
	c.allocs(allocs, verbose)
	return nil
}

func stopped(on bool) string {
	if on {
		return " (stopped)"
	}
	return ""
}

func jobStop(f *pflag.FlagSet) func(context.Context, *Call) error {
	purge := f.Bool("purge", false, "forget the job at once")
	detach := f.Bool("detach", false, "do not follow it")
	verbose := f.Bool("verbose", false, "whole ids")
	priority := f.Int("eval-priority", 0, "of the evaluation; 0 = the job's")
	noDelay := f.Bool("no-shutdown-delay", false, "do not wait out the tasks' shutdown delays")
	f.BoolP("yes", "y", false, "accepted: nothing is asked")
	return func(ctx context.Context, c *Call) error {
		j, err := c.job(ctx, c.Args[0])
		if err != nil {
			return err
		}
		_, w := c.in(ctx, j)
		eval, _, err := c.api.Jobs().DeregisterOpts(*j.ID, &api.DeregisterOptions{Purge: *purge, EvalPriority: *priority, NoShutdownDelay: *noDelay}, w)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "Job %q is stopped\n", *j.ID)
		if eval == "" || *detach {
			return nil
		}
		return c.follow(ctx, eval, *verbose)
	}
}

func jobPlan(f *pflag.FlagSet) func(context.Context, *Call) error {
	var src source
	src.flags(f)
	diff := f.Bool("diff", true, "show what differs")
	return func(ctx context.Context, c *Call) error {
		job, _, err := src.read(c, c.Args[0])
		if err != nil {
			return failed(255, "%w", c.explain(err))
		}
		w := c.write(ctx)
		set(&w.Namespace, val(job.Namespace))
		p, _, err := c.api.Jobs().PlanOpts(job, &api.PlanOptions{Diff: *diff}, w)
		if err != nil {
			return failed(255, "%w", c.explain(err))
		}
		if p.Diff != nil {
			printDiff(c.Out, p.Diff)
		}
		changes := planned(c.Out, p.Annotations)
		if len(p.FailedTGAllocs) > 0 {
			fmt.Fprintln(c.Out, "\nNot everything would find a place:")
			explainFailures(c.Out, p.FailedTGAllocs)
		}
		c.warn(p.Warnings)
		fmt.Fprintf(c.Out, "\nJob Modify Index: %d\nTo register it unless somebody else has changed it meanwhile:\n\norchestrator job run -check-index %d %s\n",
			p.JobModifyIndex, p.JobModifyIndex, c.Args[0])
		if changes {
			return failed(1, "")
		}
		return nil
	}
}

func jobValidate(f *pflag.FlagSet) func(context.Context, *Call) error {
	var src source
	src.flags(f)
	return func(ctx context.Context, c *Call) error {
		job, _, err := src.read(c, c.Args[0])
		if err != nil {
			return err
		}
		w := c.write(ctx)
		set(&w.Namespace, val(job.Namespace))
		v, _, err := c.api.Jobs().Validate(job, w)
		if err != nil {
			return err
		}
		c.warn(v.Warnings)
		if len(v.ValidationErrors) > 0 || v.Error != "" {
			return fmt.Errorf("the job is not valid:\n  %s", strings.Join(v.ValidationErrors, "\n  "))
		}
		fmt.Fprintln(c.Out, "The job is valid")
		return nil
	}
}

func jobInspect(f *pflag.FlagSet) func(context.Context, *Call) error {
	version := f.Int("version", -1, "an earlier version; -1 = the newest")
	hcl := f.Bool("hcl", false, "the text that was submitted, where it was")
	f.Bool("json", true, "accepted: it is always JSON")
	return func(ctx context.Context, c *Call) error {
		j, err := c.job(ctx, c.Args[0])
		if err != nil {
			return err
		}
		q, _ := c.in(ctx, j)
		if *hcl {
			v := *version
			if v < 0 {
				v = int(val(j.Version))
			}
			sub, _, err := c.api.Jobs().Submission(*j.ID, v, q)
			if err != nil {
				return err
			}
			fmt.Fprint(c.Out, sub.Source)
			return nil
		}
		if *version >= 0 {
			versions, _, _, err := c.api.Jobs().Versions(*j.ID, false, q)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(versions, func(v *api.Job) bool { return val(v.Version) == uint64(*version) })
			if i < 0 {
				return fmt.Errorf("version %d of job %s is not kept", *version, *j.ID)
			}
			j = versions[i]
		}
		return printJSON(c.Out, map[string]any{"Job": j})
	}
}

func jobDispatch(f *pflag.FlagSet) func(context.Context, *Call) error {
	meta := f.StringArray("meta", nil, "key=value")
	prefix := f.String("id-prefix-template", "", "part of the new job's id")
	token := f.String("idempotency-token", "", "a second dispatch with the same one does nothing")
	priority := f.Int("priority", 0, "of the new job; 0 = the parent's")
	detach := f.Bool("detach", false, "do not follow it")
	verbose := f.Bool("verbose", false, "whole ids")
	return func(ctx context.Context, c *Call) error {
		opts := &api.DispatchOptions{JobID: c.Args[0], Meta: map[string]string{}, IdPrefixTemplate: *prefix, Priority: *priority}
		for _, kv := range *meta {
			k, v, ok := strings.Cut(kv, "=")
			if !ok {
				return fmt.Errorf("-meta %q: key=value is needed", kv)
			}
			opts.Meta[k] = v
		}
		if len(c.Args) == 2 {
			var err error
			if opts.Payload, err = c.input(c.Args[1], 16<<10); err != nil {
				return fmt.Errorf("read the payload: %w", err)
			}
		}
		w := c.write(ctx)
		w.IdempotencyToken = *token
		r, _, err := c.api.Jobs().DispatchOpts(opts, w)
		if err != nil {
			return err
		}
		pairs(c.Out, "Dispatched Job ID", r.DispatchedJobID, "Evaluation ID", or(r.EvalID, "-"))
		if *detach || r.EvalID == "" {
			return nil
		}
		return c.follow(ctx, r.EvalID, *verbose)
	}
}

func jobHistory(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	diffs := f.BoolP("p", "p", false, "show what each version changed")
	return func(ctx context.Context, c *Call) error {
		j, err := c.job(ctx, c.Args[0])
		if err != nil {
			return err
		}
		q, _ := c.in(ctx, j)
		versions, changes, _, err := c.api.Jobs().Versions(*j.ID, *diffs, q)
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, versions))
		}
		for i, v := range versions {
			if i > 0 {
				fmt.Fprintln(c.Out)
			}
			pairs(c.Out, "Version", itoa(val(v.Version)), "Stable", strconv.FormatBool(val(v.Stable)), "Submit Date", when(val(v.SubmitTime)))
			if i < len(changes) && changes[i] != nil {
				printDiff(c.Out, changes[i])
			}
		}
		return nil
	}
}

func jobEval(f *pflag.FlagSet) func(context.Context, *Call) error {
	force := f.Bool("force-reschedule", false, "replace failed allocations now")
	detach := f.Bool("detach", false, "do not follow it")
	verbose := f.Bool("verbose", false, "whole ids")
	return func(ctx context.Context, c *Call) error {
		j, err := c.job(ctx, c.Args[0])
		if err != nil {
			return err
		}
		_, w := c.in(ctx, j)
		eval, _, err := c.api.Jobs().EvaluateWithOpts(*j.ID, api.EvalOptions{ForceReschedule: *force}, w)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "Evaluation %s is made\n", eval)
		if *detach {
			return nil
		}
		return c.follow(ctx, eval, *verbose)
	}
}
