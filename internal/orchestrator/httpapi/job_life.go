package httpapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

// dispatchBody holds the payload in base64, and meta.
const dispatchBody = 256 << 10

func (a *API) jobLifeTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Call("job.submission", "GET", "/v1/job/{id}/submission", read(auth.ReadJob), a.getSubmission),
		endpoint.Call("job.untag", "DELETE", "/v1/job/{id}/versions/{tag}/tag", write(auth.SubmitJob, smallBody), a.untagVersion),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Stream("job.dispatch"+name, method, "/v1/job/{id}/dispatch", write(auth.DispatchJob, dispatchBody), a.dispatchJob),
			endpoint.Stream("job.evaluate"+name, method, "/v1/job/{id}/evaluate", write(auth.SubmitJob, smallBody), a.evaluateJob),
			endpoint.Stream("job.periodic.force"+name, method, "/v1/job/{id}/periodic/force", write(auth.SubmitJob, smallBody), a.forcePeriodic),
			endpoint.Stream("job.revert"+name, method, "/v1/job/{id}/revert", write(auth.SubmitJob, smallBody), a.revertJob),
			endpoint.Call("job.stable"+name, method, "/v1/job/{id}/stable", write(auth.SubmitJob, smallBody), a.setStability),
			endpoint.Call("job.tag"+name, method, "/v1/job/{id}/versions/{tag}/tag", write(auth.SubmitJob, smallBody), a.tagVersion),
			endpoint.Stream("job.mark"+name, method, "/v1/rockpool/job/{id}/mark", write(auth.SubmitJob, smallBody), a.markJob),
			endpoint.Call("job.plan"+name, method, "/v1/job/{id}/plan", write(auth.SubmitJob, jobBody), a.planJob),
			endpoint.Call("system.reconcile"+name, method, "/v1/system/reconcile/summaries", write(auth.Management, smallBody), a.reconcileSummaries),
		}
	})...)
}

// onJob names the job that a request is about.
type onJob struct {
	Namespace string `query:"namespace"`
	ID        string `path:"id"`
}

func (r onJob) find(s *state.Snapshot) (*model.Job, error) {
	if j := s.Job(nil, cmp.Or(r.Namespace, model.DefaultNamespace), r.ID); j != nil {
		return j, nil
	}
	return nil, notFound("job")
}

const (
	maxPayload = 16 << 10 // bytes
	maxToken   = 1024     // bytes of an idempotency token, which its job keeps
)

type dispatchJob struct {
	onJob
	Token  string                  `query:"idempotency_token"`
	Prefix string                  `query:"id_prefix_template"`
	Body   wire.JobDispatchRequest `body:"optional"`
}

func (a *API) dispatchJob(w http.ResponseWriter, r *http.Request, id auth.Identity, req dispatchJob) error {
	s := a.store.Snapshot()
	parent := s.Job(nil, cmp.Or(req.Namespace, model.DefaultNamespace), req.ID)
	if parent == nil {
		return notFound("parameterized job")
	}
	b := req.Body
	if len(req.Token) > maxToken {
		return answer(http.StatusBadRequest, "an idempotency token has at most %d bytes", maxToken)
	}
	if err := mayDispatch(parent, &b); err != nil {
		return err
	}
	if err := a.again(s, parent, id); err != nil {
		return err
	}
	prefix := cmp.Or(b.IdPrefixTemplate, req.Prefix)
	if prefix != "" {
		prefix += "-"
	}
	e := leader.JobEval(parent, model.TriggerJobRegister)
	e.JobID = fmt.Sprintf("%s/dispatch-%s%d-%s", parent.ID, prefix, time.Now().Unix(), ident.New()[:8])
	return a.decide(w, r, &command.JobDispatch{Now: time.Now().UnixNano(), Eval: e, Child: state.Child{
		Namespace: parent.Namespace, ParentID: parent.ID, ID: e.JobID, Meta: b.Meta, Payload: b.Payload, Token: req.Token, Priority: b.Priority,
	}}, e, func(result any, index uint64) (any, error) {
		made := result.(*command.Made)
		out := struct {
			DispatchedJobID string
			EvalID          string
			EvalCreateIndex uint64
			JobCreateIndex  uint64
			Index           uint64
		}{DispatchedJobID: made.Job.ID, JobCreateIndex: made.Job.CreateIndex, Index: index}
		if made.New && !made.Job.IsTemplate() {
			out.EvalID, out.EvalCreateIndex = e.ID, index
		}
		return out, nil
	})
}

var dispatchPrefix = regexp.MustCompile(`^[A-Za-z0-9._-]{0,64}$`)

// mayDispatch holds a dispatch against what its job says of payload and meta. What depends on the newest state is checked again when it is applied.
func mayDispatch(j *model.Job, b *wire.JobDispatchRequest) error {
	p := j.Parameterized
	switch {
	case p == nil || j.Dispatched:
		return fault.New(fault.Conflict, "Specified job %q is not a parameterized job", j.ID)
	case j.Stop:
		return fault.New(fault.Conflict, "Specified job %q is stopped", j.ID)
	case len(b.Payload) > 0 && p.Payload == "forbidden":
		return fault.New(fault.Conflict, "Payload is not allowed, configured as %q", p.Payload)
	case len(b.Payload) == 0 && p.Payload == "required":
		return fault.New(fault.Conflict, "Payload is not provided but required by parameterized job")
	case len(b.Payload) > maxPayload:
		return fault.New(fault.Conflict, "Payload exceeds maximum size; %d > %d", len(b.Payload), maxPayload)
	case b.Priority < 0 || b.Priority > 100:
		return fault.New(fault.Conflict, "Job priority must be between [1, 100], not %d", b.Priority)
	case !dispatchPrefix.MatchString(b.IdPrefixTemplate):
		return fault.New(fault.Conflict, "the id prefix %q has more than letters, digits, dots, dashes and underscores, or is longer than 64", b.IdPrefixTemplate)
	}
	var missing, unknown []string
	for _, k := range p.MetaRequired {
		if _, ok := b.Meta[k]; !ok {
			missing = append(missing, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b.Meta)) {
		if !slices.Contains(p.MetaRequired, k) && !slices.Contains(p.MetaOptional, k) {
			unknown = append(unknown, k)
		}
	}
	switch {
	case len(unknown) > 0:
		return fault.New(fault.Conflict, "Dispatch request included unpermitted metadata keys: %v", unknown)
	case len(missing) > 0:
		return fault.New(fault.Conflict, "Dispatch did not provide required meta keys: %v", missing)
	}
	return nil
}

type evaluateJob struct {
	onJob
	Body wire.JobEvaluateRequest `body:"optional"`
}

func (a *API) evaluateJob(w http.ResponseWriter, r *http.Request, _ auth.Identity, req evaluateJob) error {
	s := a.store.Snapshot()
	j, err := req.find(s)
	if err != nil {
		return err
	}
	switch {
	case j.Periodic != nil:
		return fault.New(fault.Conflict, "can't evaluate periodic job")
	case j.IsTemplate():
		return fault.New(fault.Conflict, "can't evaluate parameterized job")
	}
	if err := a.busy(); err != nil {
		return err
	}
	e := leader.JobEval(j, model.TriggerJobRegister)
	entry := &command.AllocTransitions{Now: time.Now().UnixNano(), Evals: []*model.Evaluation{e}}
	if req.Body.EvalOptions.ForceReschedule {
		for al := range s.AllocsByJob(nil, j.Namespace, j.ID) {
			if al.DesiredStatus == model.DesiredRun && al.ClientStatus == model.ClientFailed && al.NextAllocation == "" {
				entry.Transitions = append(entry.Transitions, state.Transition{AllocID: al.ID, DesiredTransition: model.DesiredTransition{ForceReschedule: true}})
			}
		}
	}
	return a.decide(w, r, entry, e, jobWrittenBy(e, func(any) uint64 { return j.JobModifyIndex }))
}

// jobWrittenBy answers what made an evaluation of a job.
func jobWrittenBy(e *model.Evaluation, modified func(result any) uint64) func(any, uint64) (any, error) {
	return func(result any, index uint64) (any, error) {
		out := &jobWritten{EvalID: evalID(e), JobModifyIndex: modified(result), Index: index, KnownLeader: true}
		if e != nil {
			out.EvalCreateIndex = index
		}
		return out, nil
	}
}

type forcePeriodic struct {
	onJob
	Body indexBody `body:"optional"`
}

func (a *API) forcePeriodic(w http.ResponseWriter, r *http.Request, id auth.Identity, req forcePeriodic) error {
	s := a.store.Snapshot()
	j, err := req.find(s)
	if err != nil {
		return err
	}
	if j.Periodic == nil {
		return fault.New(fault.Conflict, "can't periodically launch non-periodic job")
	}
	if err := a.again(s, j, id); err != nil {
		return err
	}
	entry := leader.LaunchPeriodic(j, time.Now(), true)
	return a.decide(w, r, entry, entry.Eval, jobWrittenBy(entry.Eval, func(result any) uint64 { return result.(*command.Made).Job.JobModifyIndex }))
}

type revertJob struct {
	onJob
	Body wire.JobRevertRequest `body:"json"`
}

func (a *API) revertJob(w http.ResponseWriter, r *http.Request, id auth.Identity, req revertJob) error {
	s := a.store.Snapshot()
	j, err := req.find(s)
	if err != nil {
		return err
	}
	if at := req.Body.EnforcePriorVersion; at != nil && *at != j.Version {
		return fault.New(fault.Conflict, "Current job has version %d; enforcing version %d", j.Version, *at)
	}
	if req.Body.JobVersion == j.Version {
		return fault.New(fault.Conflict, "can't revert to current version")
	}
	old := s.JobVersion(j.Namespace, j.ID, req.Body.JobVersion)
	if old == nil {
		return noVersion(j, req.Body.JobVersion)
	}
	if err := a.again(s, old, id); err != nil {
		return err
	}
	c := *old
	c.Stop, c.Stable, c.VersionTag = false, false, nil
	entry := &command.JobRegister{Now: time.Now().UnixNano(), Job: &c, EnforceIndex: true, AtIndex: j.JobModifyIndex}
	if !c.IsTemplate() {
		entry.Eval = leader.JobEval(j, model.TriggerJobRegister)
	}
	if sub := s.Submission(nil, j.Namespace, j.ID, old.Version); sub != nil {
		again := *sub
		entry.Submission = &again
	}
	return a.decide(w, r, entry, entry.Eval, jobWrittenBy(entry.Eval, registeredIndex))
}

type markJob struct {
	onJob
	Body struct {
		Group          string
		Meta           map[string]string
		JobModifyIndex uint64
	} `body:"json"`
}

// markJob sets meta of a group that places nothing. As no work comes of it, it is not refused while registrations are.
func (a *API) markJob(w http.ResponseWriter, r *http.Request, _ auth.Identity, req markJob) error {
	b := req.Body
	if b.Group == "" || b.JobModifyIndex == 0 {
		return answer(http.StatusBadRequest, "a mark needs the group that it is put on, and the JobModifyIndex that the job must have")
	}
	for k := range b.Meta {
		if wire.Validated(k) {
			return answer(http.StatusBadRequest, "what %q says is validated: register the job with it", k)
		}
	}
	err := a.decide(w, r, &command.JobMark{
		Now: time.Now().UnixNano(), Namespace: cmp.Or(req.Namespace, model.DefaultNamespace), JobID: req.ID, Group: b.Group, AtIndex: b.JobModifyIndex, Meta: b.Meta,
	}, nil, jobWrittenBy(nil, registeredIndex))
	if errors.Is(err, command.ErrNotKnownToAll) { // in the middle of a rolling upgrade
		return fault.Wrap(fault.Unprocessable, err, "not all servers know marks: register the job instead")
	}
	return err
}

func registeredIndex(result any) uint64 { return result.(*command.Registered).JobModifyIndex }

func noVersion(j *model.Job, v uint64) error {
	return fault.New(fault.NotFound, "job %q in namespace %q at version %d not found", j.ID, j.Namespace, v)
}

type setStability struct {
	onJob
	Body wire.JobStabilityRequest `body:"json"`
}

func (a *API) setStability(ctx context.Context, _ auth.Identity, req setStability) (reply, error) {
	j, err := req.find(a.store.Snapshot())
	if err != nil {
		return reply{}, err
	}
	done, index, err := a.apply(ctx, &command.JobStability{
		Now: time.Now().UnixNano(), Namespace: j.Namespace, JobID: j.ID, Version: req.Body.JobVersion, Stable: req.Body.Stable,
	})
	if err != nil {
		return reply{}, err
	}
	if !done.(bool) {
		return reply{}, noVersion(j, req.Body.JobVersion)
	}
	return a.written(index, struct{ JobModifyIndex, Index uint64 }{j.JobModifyIndex, index}), nil
}

type onTag struct {
	onJob
	Tag string `path:"tag"`
}

type tagVersion struct {
	onTag
	Body wire.TagVersionRequest `body:"optional"`
}

func (a *API) tagVersion(ctx context.Context, _ auth.Identity, req tagVersion) (reply, error) {
	s := a.store.Snapshot()
	j, err := req.find(s)
	if err != nil {
		return reply{}, err
	}
	if req.Tag == "" || len(req.Tag) > 128 || strings.ContainsRune(req.Tag, 0) {
		return reply{}, answer(http.StatusBadRequest, "a tag needs a name of at most 128 bytes")
	}
	v := req.Body.Version
	if req.Body.Latest {
		v = j.Version
	}
	tagged := 0
	for old := range s.JobVersions(nil, j.Namespace, j.ID) {
		if old.VersionTag == nil || old.Version == v {
			continue
		}
		if old.VersionTag.Name == req.Tag {
			return reply{}, answer(http.StatusBadRequest, "tag %q already exists on a different version of job %q", req.Tag, j.ID)
		}
		tagged++
	}
	if tagged >= maxTags {
		return reply{}, answer(http.StatusBadRequest, "job %q has %d tagged versions, which are all kept: take a tag away first", j.ID, tagged)
	}
	return a.tag(ctx, j, v, &model.VersionTag{Name: req.Tag, Description: req.Body.Description, TaggedTime: time.Now().UnixNano()})
}

// maxTags bounds the versions of one job that are kept for their names.
const maxTags = 50

func (a *API) untagVersion(ctx context.Context, _ auth.Identity, req onTag) (reply, error) {
	s := a.store.Snapshot()
	j, err := req.find(s)
	if err != nil {
		return reply{}, err
	}
	v := s.TaggedVersion(j.Namespace, j.ID, req.Tag)
	if v == nil {
		return reply{}, fault.New(fault.NotFound, "tag %q not found on job %q", req.Tag, j.ID)
	}
	return a.tag(ctx, j, v.Version, nil)
}

func (a *API) tag(ctx context.Context, j *model.Job, v uint64, tag *model.VersionTag) (reply, error) {
	done, index, err := a.apply(ctx, &command.JobVersionTag{Now: time.Now().UnixNano(), Namespace: j.Namespace, JobID: j.ID, Version: v, Tag: tag})
	if err != nil {
		return reply{}, err
	}
	if !done.(bool) {
		return reply{}, noVersion(j, v)
	}
	name, text := "", ""
	if tag != nil {
		name, text = tag.Name, tag.Description
	}
	return a.written(index, struct {
		Name, Description string
		TaggedTime        int64
		Index             uint64
	}{name, text, time.Now().UnixNano(), index}), nil
}

type getSubmission struct {
	byJob
	Version string `query:"version"`
}

// getSubmission shows the text of a version, by default the newest.
func (a *API) getSubmission(ctx context.Context, _ auth.Identity, r getSubmission) (reply, error) {
	return a.readJob(ctx, r.byJob, func(s *state.Snapshot, w state.Watch, j *model.Job) (found, error) {
		v, err := versionOr(r.Version, j.Version)
		if err != nil {
			return found{}, err
		}
		sub := s.Submission(w, j.Namespace, j.ID, v)
		if sub == nil {
			return found{index: j.ModifyIndex}, notFound("job source")
		}
		return found{index: j.ModifyIndex, body: &wire.JobSubmission{
			Source: sub.Source, Format: sub.Format, VariableFlags: sub.VariableFlags, Variables: sub.Variables,
		}}, nil
	})
}

// versionOr reads the number of a version; "" = the other.
func versionOr(s string, other uint64) (uint64, error) {
	if s == "" {
		return other, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, answer(http.StatusBadRequest, "version %q is not a number of 0 or more", s)
	}
	return v, nil
}

const maxSource = 1 << 20 // bytes of a text that is kept with its job

// submission is what is kept of a job's text. One that is too long is left out, with a warning.
func submission(j *model.Job, s *wire.JobSubmission) (kept *state.Submission, warning string) {
	if s == nil {
		return nil, ""
	}
	size := len(s.Source) + len(s.Variables)
	for k, v := range s.VariableFlags {
		size += len(k) + len(v)
	}
	if size > maxSource {
		return nil, fmt.Sprintf("job source size of %d bytes exceeds maximum of %d bytes and will be discarded", size, maxSource)
	}
	return &state.Submission{
		Namespace: j.Namespace, JobID: j.ID, Source: s.Source, Format: s.Format, VariableFlags: s.VariableFlags, Variables: s.Variables,
	}, ""
}

type planJob struct {
	Namespace string              `query:"namespace"`
	ID        string              `path:"id"`
	Body      wire.JobPlanRequest `body:"json"`
}

// planJob shows what a registration would do: it is decided on a state that supposes it was made, and nothing is written.
func (a *API) planJob(ctx context.Context, id auth.Identity, r planJob) (reply, error) {
	select { // a plan of a large job takes hundreds of megabytes while it lasts
	case a.planning <- struct{}{}:
		defer func() { <-a.planning }()
	case <-ctx.Done():
		return reply{}, fault.New(fault.Exhausted, "other plans are under way: try again")
	}
	in := r.Body.Job
	switch {
	case in == nil:
		return reply{}, answer(http.StatusBadRequest, "Job must be specified")
	case in.ID == nil || *in.ID == "":
		return reply{}, answer(http.StatusBadRequest, "Job must have a valid ID")
	case *in.ID != r.ID:
		return reply{}, answer(http.StatusBadRequest, "Job ID does not match")
	}
	j, warnings, err := a.checked(in, cmp.Or(r.Namespace, r.Body.Namespace), id)
	if err != nil {
		return reply{}, err
	}
	now := time.Now()
	before := a.store.Snapshot().Job(nil, j.Namespace, j.ID)
	e := leader.JobEval(j, model.TriggerJobRegister)
	proposed := *j
	supposed, err := a.store.Suppose(now.UnixNano(), func(tx *state.Tx) error {
		after, err := tx.RegisterJob(&proposed, false, 0)
		if err == nil {
			e.JobModifyIndex = after.JobModifyIndex
			tx.PutEval(e)
		}
		return err
	})
	if err != nil {
		return reply{}, err
	}
	out := &wire.JobPlanResponse{Warnings: warnings}
	if before != nil {
		out.JobModifyIndex = before.JobModifyIndex
	}
	if r.Body.Diff {
		out.Diff = wire.Diff(before, j)
	}
	if j.Periodic != nil && !j.Stop {
		out.NextPeriodicLaunch = leader.NextLaunch(j.Periodic, now)
	}
	counts := map[string]sched.Counts{}
	if !j.IsTemplate() {
		d := sched.Schedule(a.cfg.Leader.View(supposed), e, now.UnixNano())
		counts = sched.Annotate(d)
		out.FailedTGAllocs = wire.MetricsOut(d.Failed)
		if len(d.Failed) > 0 {
			blocked := leader.JobEval(j, model.TriggerQueuedAllocs)
			blocked.Status, blocked.PreviousEval, blocked.FailedTGAllocs, blocked.QueuedAllocations = model.EvalBlocked, e.ID, d.Failed, d.Queued
			out.CreatedEvals = append(out.CreatedEvals, wire.EvalOut(blocked))
		}
	}
	out.Annotations = wire.Annotations(counts)
	if out.Diff != nil {
		wire.AnnotateDiff(out.Diff, counts)
	}
	return a.written(a.store.Index(), out), nil
}

func (a *API) reconcileSummaries(ctx context.Context, _ auth.Identity, _ struct{}) (reply, error) {
	_, index, err := a.apply(ctx, &command.ReconcileSummaries{Now: time.Now().UnixNano()})
	return a.written(index, indexBody{index}), err
}
