package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/jobspec"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

type listJobs struct {
	query
	Meta  endpoint.Flag `query:"meta"`
	Whole endpoint.Flag `query:"rockpool_jobs"` // each line carries its job
}

func (a *API) listJobs(ctx context.Context, id auth.Identity, r listJobs) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		stubs := mapped(s.Jobs(w, r.namespace(), r.Prefix), func(j *model.Job) (*wire.JobListStub, bool) {
			if !r.sees(j.Namespace) {
				return nil, false
			}
			return wire.JobStub(j, summary(s, nil, j), bool(r.Meta)), true
		})
		out, next, err := page(stubs, &r.query, func(j *wire.JobListStub) string { return j.Namespace + "." + j.ID })
		if w != nil { // summaries change with the allocations
			s.Allocs(w, "")
		}
		at := found{max(s.JobsIndex(), s.AllocsIndex()), out, next}
		if r.Whole && err == nil {
			at.body = whole(s, id, out)
		}
		return at, err
	})
}

// whole puts the jobs beside their lines, for those who may read them: who needs them all need not ask for each.
func whole(s *state.Snapshot, id auth.Identity, stubs []*wire.JobListStub) []wire.WholeJob {
	out := make([]wire.WholeJob, len(stubs))
	for i, stub := range stubs {
		out[i].JobListStub = stub
		if j := s.Job(nil, stub.Namespace, stub.ID); j != nil && id.MayIn(auth.ReadJob, stub.Namespace) {
			out[i].Job = wire.JobOut(j)
		}
	}
	return out
}

func summary(s *state.Snapshot, w state.Watch, j *model.Job) *wire.JobSummary {
	sum := wire.Summary(j, s.AllocsByJob(w, j.Namespace, j.ID), s.EvalsByJob(w, j.Namespace, j.ID))
	c := s.Children(w, j.Namespace, j.ID)
	sum.Children.Pending, sum.Children.Running, sum.Children.Dead = c.Pending, c.Running, c.Dead
	return sum
}

type byJob struct {
	query
	ID  string        `path:"id"`
	All endpoint.Flag `query:"all"`
}

// readJob is read for the job of the path.
func (a *API) readJob(ctx context.Context, r byJob, f func(*state.Snapshot, state.Watch, *model.Job) (found, error)) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		j := s.Job(w, r.namespace(), r.ID)
		if j == nil {
			return found{index: s.JobsIndex()}, notFound("job")
		}
		return f(s, w, j)
	})
}

func (a *API) getJob(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.readJob(ctx, r, func(_ *state.Snapshot, _ state.Watch, j *model.Job) (found, error) {
		return found{index: j.ModifyIndex, body: wire.JobOut(j)}, nil
	})
}

func (a *API) getJobSummary(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.readJob(ctx, r, func(s *state.Snapshot, w state.Watch, j *model.Job) (found, error) {
		sum := summary(s, w, j)
		return found{index: max(sum.ModifyIndex, j.ModifyIndex), body: sum}, nil
	})
}

type jobVersions struct {
	byJob
	Diffs       endpoint.Flag `query:"diffs"`
	DiffTag     string        `query:"diff_tag"`
	DiffVersion string        `query:"diff_version"`
}

// getJobVersions shows the kept versions, newest first, and on demand what differs: each from the one before it, or all of them from one that is named.
func (a *API) getJobVersions(ctx context.Context, _ auth.Identity, r jobVersions) (reply, error) {
	return a.readJob(ctx, r.byJob, func(s *state.Snapshot, w state.Watch, j *model.Job) (found, error) {
		var versions []*model.Job
		for v := range s.JobVersions(w, j.Namespace, j.ID) {
			if v.JobModifyIndex == j.JobModifyIndex {
				v = j // with its status
			}
			versions = append(versions, v)
		}
		slices.Reverse(versions)
		out := struct {
			Versions []*wire.Job
			Diffs    []*wire.JobDiff
		}{Versions: []*wire.Job{}}
		for _, v := range versions {
			out.Versions = append(out.Versions, wire.JobOut(v))
		}
		if r.Diffs {
			var err error
			if out.Diffs, err = diffs(s, j, versions, r); err != nil {
				return found{index: j.ModifyIndex}, err
			}
		}
		return found{index: j.ModifyIndex, body: out}, nil
	})
}

func diffs(s *state.Snapshot, j *model.Job, versions []*model.Job, r jobVersions) ([]*wire.JobDiff, error) {
	var to *model.Job
	switch {
	case r.DiffTag != "":
		if to = s.TaggedVersion(j.Namespace, j.ID, r.DiffTag); to == nil {
			return nil, fault.New(fault.NotFound, "tag %q not found on job %q", r.DiffTag, j.ID)
		}
	case r.DiffVersion != "":
		v, err := versionOr(r.DiffVersion, 0)
		if err != nil {
			return nil, err
		}
		if to = s.JobVersion(j.Namespace, j.ID, v); to == nil {
			return nil, noVersion(j, v)
		}
	}
	out := []*wire.JobDiff{}
	for i, v := range versions {
		switch {
		case to != nil:
			out = append(out, wire.Diff(to, v))
		case i+1 < len(versions):
			out = append(out, wire.Diff(versions[i+1], v))
		}
	}
	return out, nil
}

func (a *API) listJobAllocs(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		j := s.Job(w, r.namespace(), r.ID)
		stubs := mapped(s.AllocsByJob(w, r.namespace(), r.ID), func(al *model.Allocation) (*wire.AllocationListStub, bool) {
			// An allocation of an earlier job with this id is shown only when asked for.
			return wire.AllocStub(al, false, true), bool(r.All) || j == nil || al.Job.CreateIndex == j.CreateIndex
		})
		out, next, err := page(stubs, &r.query, func(s *wire.AllocationListStub) string { return s.ID })
		return found{s.AllocsIndex(), out, next}, err
	})
}

func (a *API) listJobEvals(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		evals := mapped(s.EvalsByJob(w, r.namespace(), r.ID), evalOut)
		out, next, err := page(evals, &r.query, func(e *wire.Evaluation) string { return e.ID })
		return found{s.EvalsIndex(), out, next}, err
	})
}

func evalOut(e *model.Evaluation) (*wire.Evaluation, bool) { return wire.EvalOut(e), true }

type registerJob struct {
	Namespace string                  `query:"namespace"`
	Region    string                  `query:"region"`
	Body      wire.JobRegisterRequest `body:"json"`
}

type updateJob struct {
	registerJob
	ID string `path:"id"`
}

func (a *API) updateJob(w http.ResponseWriter, r *http.Request, id auth.Identity, req updateJob) error {
	if req.Body.Job != nil && req.Body.Job.ID != nil && *req.Body.Job.ID != req.ID {
		return answer(http.StatusBadRequest, "Job ID does not match name")
	}
	return a.registerJob(w, r, id, req.registerJob)
}

// registerJob answers as soon as job and evaluation are committed, and what is simple is placed with them; nothing else is waited for. The end of the
// evaluation, however, is held back until the answer has left.
func (a *API) registerJob(w http.ResponseWriter, r *http.Request, id auth.Identity, req registerJob) error {
	j := req.Body.Job
	if j == nil {
		return answer(http.StatusBadRequest, "Job must be specified")
	}
	if j.ID == nil || *j.ID == "" {
		return answer(http.StatusBadRequest, "Job ID hasn't been provided")
	}
	job, warnings, err := a.admit(j, cmp.Or(req.Namespace, req.Body.Namespace), id)
	if err != nil {
		return err
	}
	switch {
	case job.Dispatched:
		return answer(http.StatusInternalServerError, "job can't be submitted with 'Dispatched' set to true")
	case job.DispatchToken != "":
		return answer(http.StatusInternalServerError, "job can't be submitted with 'DispatchIdempotencyToken' set")
	}
	job.VersionTag = nil // versions are tagged by a call of its own
	if p := req.Body.EvalPriority; p < 0 || p > 100 {
		return answer(http.StatusBadRequest, "eval priority must be between 1 and 100 inclusively, got %d", p)
	}
	if req.Body.PreserveCounts || req.Body.PreserveResources {
		preserve(a.store.Snapshot(), job, req.Body.PreserveCounts, req.Body.PreserveResources)
	}
	entry := &command.JobRegister{
		Now: time.Now().UnixNano(), Job: job, EnforceIndex: req.Body.EnforceIndex, AtIndex: req.Body.JobModifyIndex,
	}
	text := ""
	if entry.Submission, text = submission(job, req.Body.Submission); text != "" {
		warnings = strings.TrimLeft(warnings+"\n"+text, "\n")
	}
	if !job.IsTemplate() { // which is not placed, but what is made of it
		entry.Eval = leader.JobEval(job, model.TriggerJobRegister)
		entry.Eval.Priority = cmp.Or(req.Body.EvalPriority, job.Priority)
	}
	return a.decide(w, r, entry, entry.Eval, func(result any, index uint64) (any, error) {
		out := &jobWritten{
			EvalID: evalID(entry.Eval), JobModifyIndex: registeredIndex(result), Warnings: warnings, Index: index, KnownLeader: true,
		}
		if entry.Eval != nil {
			out.EvalCreateIndex = index
		}
		return out, nil
	})
}

// jobWritten answers a registration and a removal.
type jobWritten struct {
	EvalID          string
	EvalCreateIndex uint64
	JobModifyIndex  uint64
	Warnings        string
	Index           uint64
	LastContact     int64
	KnownLeader     bool
}

// preserve keeps what is set of a job's groups in the version that runs, where the caller did not mean to change it.
func preserve(s *state.Snapshot, j *model.Job, counts, resources bool) {
	old := s.Job(nil, j.Namespace, j.ID)
	if old == nil {
		return
	}
	for _, g := range j.TaskGroups {
		og := old.Group(g.Name)
		if og == nil {
			continue
		}
		if counts {
			g.Count = og.Count
		}
		for _, t := range g.Tasks {
			if ot := og.Task(t.Name); ot != nil && resources {
				t.Resources = ot.Resources
			}
		}
	}
}

// admit completes and checks a job.
func (a *API) admit(j *wire.Job, namespace string, id auth.Identity) (*model.Job, string, error) {
	job, warnings, err := a.checked(j, namespace, id)
	if err != nil {
		return nil, "", err
	}
	return job, warnings, a.room(id)
}

// again refuses to run once more what may be known, but is not allowed where it is any longer.
func (a *API) again(s *state.Snapshot, j *model.Job, id auth.Identity) error {
	if problem := leader.Misplaced(s, nil, j); problem != "" {
		return answer(http.StatusInternalServerError, "%s", problem)
	}
	return a.room(id)
}

// room refuses new work while an operator wants none, and what could not be placed in time.
func (a *API) room(id auth.Identity) error {
	if a.store.Snapshot().SchedulerConfig().RejectRegistrations && (!a.controlled() || !id.Management) {
		return fault.New(fault.Forbidden, "job registration is disabled in the scheduler configuration")
	}
	return a.busy()
}

// busy refuses more evaluations while those that there are take too long.
func (a *API) busy() error {
	if retry, overloaded := a.cfg.Leader.Overloaded(); overloaded {
		return fault.New(fault.Exhausted, "more is registered than can be placed in time: try again in %v", retry)
	}
	return nil
}

// checked completes and checks a job, whether or not it may be registered now.
func (a *API) checked(j *wire.Job, namespace string, id auth.Identity) (*model.Job, string, error) {
	if namespace != "" {
		j.Namespace = &namespace
	}
	snap := a.store.Snapshot()
	choosePool(snap, j)
	if err := wire.Complete(j); err != nil {
		return nil, "", fault.New(fault.Invalid, "%s", err.Error())
	}
	if err := require(id, auth.SubmitJob, *j.Namespace); err != nil {
		return nil, "", err
	}
	p := wire.Validate(j)
	if len(p.Errors) > 0 {
		return nil, "", answer(http.StatusInternalServerError, "%s", p.Text())
	}
	job := wire.JobIn(j)
	if problem := leader.Misplaced(snap, nil, job); problem != "" {
		return nil, "", answer(http.StatusInternalServerError, "%s", problem)
	}
	nameScaling(job)
	return job, p.WarningText(), nil
}

// flushed writes an answer and returns when the connection has all of it.
func flushed(w http.ResponseWriter, r reply) error {
	data := newJSONWriter()
	if err := data.add(r.body); err != nil {
		return err
	}
	data.WriteByte('\n')
	h := w.Header()
	r.HTTPHeader(h)
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(data.Len()))
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(data.Bytes()); err != nil {
		return err
	}
	data.release()
	return http.NewResponseController(w).Flush()
}

type deleteJob struct {
	Namespace    string        `query:"namespace"`
	ID           string        `path:"id"`
	Purge        endpoint.Flag `query:"purge"`
	EvalPriority int           `query:"eval_priority"`

	NoShutdownDelay endpoint.Flag `query:"no_shutdown_delay"`
}

func (a *API) deleteJob(w http.ResponseWriter, r *http.Request, _ auth.Identity, req deleteJob) error {
	namespace := cmp.Or(req.Namespace, model.DefaultNamespace)
	j := a.store.Snapshot().Job(nil, namespace, req.ID)
	if j == nil {
		// Nothing is written that would show that this server does not lead any more, and that another one knows the job.
		if c := a.cfg.Cluster; c != nil {
			if err := c.Verify(r.Context()); err != nil {
				return fmt.Errorf("answer that there is no job: %w", err)
			}
		}
		return flushed(w, a.written(0, &jobWritten{KnownLeader: true}))
	}
	entry := &command.JobDeregister{
		Now: time.Now().UnixNano(), Namespace: namespace, JobID: j.ID, Purge: bool(req.Purge), NoShutdownDelay: bool(req.NoShutdownDelay),
	}
	if !j.IsTemplate() {
		entry.Eval = leader.JobEval(j, model.TriggerJobDeregister)
		entry.Eval.Priority = cmp.Or(req.EvalPriority, j.Priority)
	}
	return a.decide(w, r, entry, entry.Eval, func(done any, index uint64) (any, error) {
		out := &jobWritten{Index: index, KnownLeader: true}
		if done.(bool) {
			out.EvalID, out.JobModifyIndex = evalID(entry.Eval), index
		}
		if out.EvalID != "" {
			out.EvalCreateIndex = index
		}
		return out, nil
	})
}

type validateJob struct {
	Namespace string                  `query:"namespace"`
	Body      wire.JobValidateRequest `body:"json"`
}

func (a *API) validateJob(_ context.Context, id auth.Identity, r validateJob) (reply, error) {
	j := r.Body.Job
	if j == nil {
		return reply{}, answer(http.StatusBadRequest, "Job must be specified")
	}
	if r.Namespace != "" {
		j.Namespace = &r.Namespace
	}
	if err := wire.Complete(j); err != nil {
		return reply{}, fault.New(fault.Invalid, "%s", err.Error())
	}
	if err := require(id, auth.ReadJob, *j.Namespace); err != nil {
		return reply{}, err
	}
	p := wire.Validate(j)
	// Nomad's client takes false for a server that it could not reach. As with Nomad's own servers, what a driver is told is up to the nodes.
	out := &wire.JobValidateResponse{DriverConfigValidated: true, ValidationErrors: p.Errors, Warnings: p.WarningText()}
	if len(p.Errors) > 0 {
		out.Error = p.Text()
	}
	return a.written(a.store.Index(), out), nil
}

type parseJob struct {
	Namespace string                `query:"namespace"`
	Body      wire.JobsParseRequest `body:"json"`
}

func (a *API) parseJob(_ context.Context, _ auth.Identity, r parseJob) (reply, error) {
	if r.Body.JobHCL == "" {
		return reply{}, answer(http.StatusBadRequest, "Job spec is empty")
	}
	j, err := jobspec.Parse("job.hcl", []byte(r.Body.JobHCL), r.Body.Variables)
	if err != nil {
		return reply{}, answer(http.StatusBadRequest, "%s", err.Error())
	}
	if r.Namespace != "" {
		j.Namespace = &r.Namespace
	}
	if r.Body.Canonicalize {
		if err := wire.Complete(j); err != nil {
			return reply{}, answer(http.StatusBadRequest, "%s", err.Error())
		}
	}
	return a.written(a.store.Index(), j), nil
}
