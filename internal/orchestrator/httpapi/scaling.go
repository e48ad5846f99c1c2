package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

func (a *API) scalingTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Call("job.scale.get", "GET", "/v1/job/{id}/scale", read(auth.ReadScaling), a.getScale),
		endpoint.Call("scaling.list", "GET", "/v1/scaling/policies", read(auth.ListScaling), a.listScaling),
		endpoint.Call("scaling.get", "GET", "/v1/scaling/policy/{id}", read(auth.ScalingPolicy), a.getScaling),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Stream("job.scale"+name, method, "/v1/job/{id}/scale", write(auth.ScaleJob, smallBody), a.scaleJob),
		}
	})...)
}

// nameScaling gives each scaling policy its id, which follows from the group that it is of, so that it stays the same from version to version.
func nameScaling(j *model.Job) {
	for _, g := range j.TaskGroups {
		if g.Scaling != nil {
			h := sha256.Sum256([]byte(j.Namespace + "\x00" + j.ID + "\x00" + g.Name))
			b := h[:16]
			b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // version 8: made by a rule of our own
			x := hex.EncodeToString(b)
			g.Scaling.ID = x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
		}
	}
}

type scaleJob struct {
	onJob
	Body wire.ScalingRequest `body:"json"`
}

// scaleJob sets the count of a group, or without a count only keeps a message about it.
func (a *API) scaleJob(w http.ResponseWriter, r *http.Request, id auth.Identity, req scaleJob) error {
	s := a.store.Snapshot()
	j, err := req.find(s)
	if err != nil {
		return err
	}
	b := req.Body
	group := b.Target["Group"]
	g := j.Group(group)
	switch {
	case group == "":
		return answer(http.StatusBadRequest, "missing task group name for scaling action")
	case g == nil:
		return answer(http.StatusBadRequest, "task group %q specified for scaling does not exist in job", group)
	case b.Error && b.Count != nil:
		return answer(http.StatusBadRequest, "scaling action should not contain count if error is true")
	case b.Count != nil && *b.Count < 0:
		return answer(http.StatusBadRequest, "scaling action count can't be negative")
	}
	entry := &command.JobScale{
		Now: time.Now().UnixNano(), Namespace: j.Namespace, JobID: j.ID, Group: group, AtIndex: b.JobModifyIndex,
		Event: state.ScalingEvent{Count: b.Count, Error: b.Error, Message: b.Message, Meta: b.Meta},
	}
	if b.Count != nil {
		if err := mayScale(s, j, g, *b.Count); err != nil {
			return err
		}
		if err := a.room(id); err != nil {
			return err
		}
		if entry.AtIndex == 0 {
			entry.AtIndex = j.JobModifyIndex // what was checked is what is scaled
		}
		if !j.IsTemplate() {
			entry.Eval = leader.JobEval(j, model.TriggerScaling)
		}
	}
	return a.decide(w, r, entry, entry.Eval, jobWrittenBy(entry.Eval, registeredIndex))
}

func mayScale(s *state.Snapshot, j *model.Job, g *model.TaskGroup, to int64) error {
	if j.Type == model.JobTypeSystem || j.Type == model.JobTypeSysbatch {
		return answer(http.StatusBadRequest, "cannot scale jobs of type %q", j.Type)
	}
	if j.Stop {
		return answer(http.StatusBadRequest, "cannot scale a job that is stopped")
	}
	if to > wire.MaxCount {
		return answer(http.StatusBadRequest, "group count was greater than what a group may have: %d > %d", to, wire.MaxCount)
	}
	if d := s.LatestDeployment(nil, j.Namespace, j.ID); d != nil && d.Active() && d.JobCreateIndex == j.CreateIndex && to != int64(g.Count) {
		return answer(http.StatusBadRequest, "job scaling blocked due to active deployment")
	}
	if p := g.Scaling; p != nil {
		if to > p.Max {
			return answer(http.StatusBadRequest, "group count was greater than scaling policy maximum: %d > %d", to, p.Max)
		}
		if to < p.Min {
			return answer(http.StatusBadRequest, "group count was less than scaling policy minimum: %d < %d", to, p.Min)
		}
	}
	return nil
}

func (a *API) getScale(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.readJob(ctx, r, func(s *state.Snapshot, w state.Watch, j *model.Job) (found, error) {
		out := &wire.JobScaleStatusResponse{
			JobID: j.ID, Namespace: j.Namespace, JobCreateIndex: j.CreateIndex, JobModifyIndex: j.JobModifyIndex, JobStopped: j.Stop,
			TaskGroups: map[string]wire.TaskGroupScaleStatus{},
		}
		index := j.ModifyIndex
		for _, g := range j.TaskGroups {
			out.TaskGroups[g.Name] = wire.TaskGroupScaleStatus{Desired: g.Count, Events: []wire.ScalingEvent{}}
		}
		for al := range s.AllocsByJob(w, j.Namespace, j.ID) {
			g, ok := out.TaskGroups[al.TaskGroup]
			if !ok || al.Terminal() {
				continue
			}
			index = max(index, al.ModifyIndex)
			g.Placed++
			if al.ClientStatus == model.ClientRunning {
				g.Running++
			}
			if state.Healthy(al) {
				g.Healthy++
			} else if state.Unhealthy(al) {
				g.Unhealthy++
			}
			out.TaskGroups[al.TaskGroup] = g
		}
		events := s.ScalingEvents(w, j.Namespace, j.ID)
		for i := len(events) - 1; i >= 0; i-- { // newest first
			e := &events[i]
			g, ok := out.TaskGroups[e.Group]
			if !ok {
				continue
			}
			ev := wire.ScalingEvent{
				Count: e.Count, PreviousCount: e.PreviousCount, Error: e.Error, Message: e.Message, Meta: e.Meta, Time: uint64(max(e.Time, 0)), CreateIndex: e.Index,
			}
			if e.EvalID != "" {
				ev.EvalID = &e.EvalID
			}
			g.Events = append(g.Events, ev)
			index = max(index, e.Index)
			out.TaskGroups[e.Group] = g
		}
		return found{index: index, body: out}, nil
	})
}

type listScaling struct {
	query
	Job  string `query:"job"`
	Type string `query:"type"`
}

func (a *API) listScaling(ctx context.Context, id auth.Identity, r listScaling) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		stubs := func(yield func(*wire.ScalingPolicyListStub) bool) {
			for p := range policies(s, w) {
				wanted := r.sees(p.Namespace) && id.MayIn(auth.ListScaling, p.Namespace) && (r.Job == "" || r.Job == p.Target["Job"]) && (r.Type == "" || r.Type == p.Type)
				if wanted && !yield(&wire.ScalingPolicyListStub{
					ID: p.ID, Enabled: *p.Enabled, Type: p.Type, Target: p.Target, CreateIndex: p.CreateIndex, ModifyIndex: p.ModifyIndex,
				}) {
					return
				}
			}
		}
		out, next, err := page(stubs, &r.query, func(p *wire.ScalingPolicyListStub) string { return p.ID })
		return found{s.JobsIndex(), out, next}, err
	})
}

// policies yields the scaling policies of all jobs.
func policies(s *state.Snapshot, w state.Watch) func(func(*wire.ScalingPolicy) bool) {
	return func(yield func(*wire.ScalingPolicy) bool) {
		for j := range s.ScalableJobs(w) {
			for _, g := range j.TaskGroups {
				if g.Scaling != nil && !yield(wire.ScalingPolicyOut(j, g)) {
					return
				}
			}
		}
	}
}

func (a *API) getScaling(ctx context.Context, id auth.Identity, r byID) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		for p := range policies(s, w) {
			if p.ID == r.ID {
				return found{index: p.ModifyIndex, body: p}, require(id, auth.ScalingPolicy, p.Namespace)
			}
		}
		return found{index: s.JobsIndex()}, notFound("policy")
	})
}
