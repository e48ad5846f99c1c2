package httpapi

import (
	"context"
	"net/http"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

func (a *API) deploymentTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Call("deployment.list", "GET", "/v1/deployments", read(auth.ReadJob), a.listDeployments),
		endpoint.Call("deployment.allocations", "GET", "/v1/deployment/allocations/{id}", read(auth.ReadJob), a.listDeploymentAllocs),
		endpoint.Call("deployment.get", "GET", "/v1/deployment/{id}", read(auth.ReadJob), a.getDeployment),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Stream("deployment.promote"+name, method, "/v1/deployment/promote/{id}", write(auth.SubmitJob, smallBody), a.promoteDeployment),
			endpoint.Stream("deployment.pause"+name, method, "/v1/deployment/pause/{id}", write(auth.SubmitJob, smallBody), a.pauseDeployment),
			endpoint.Stream("deployment.fail"+name, method, "/v1/deployment/fail/{id}", write(auth.SubmitJob, smallBody), a.failDeployment),
			endpoint.Stream("deployment.unblock"+name, method, "/v1/deployment/unblock/{id}", write(auth.SubmitJob, smallBody), a.unblockDeployment),
			endpoint.Stream("deployment.health"+name, method, "/v1/deployment/allocation-health/{id}", write(auth.SubmitJob, nodeBody), a.setDeploymentHealth),
		}
	})...)
}

func (a *API) listDeployments(ctx context.Context, id auth.Identity, r query) (reply, error) {
	if err := hexPrefix(r.Prefix); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		list := mapped(s.Deployments(w, r.Prefix), func(d *model.Deployment) (*wire.Deployment, bool) {
			if !r.sees(d.Namespace) || !id.MayIn(auth.ReadJob, d.Namespace) {
				return nil, false
			}
			return wire.DeploymentOut(d), true
		})
		out, next, err := page(list, &r, func(d *wire.Deployment) string { return d.ID })
		return found{s.DeploymentsIndex(), out, next}, err
	})
}

func (a *API) getDeployment(ctx context.Context, id auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		d := s.Deployment(w, r.ID)
		if d == nil {
			return found{index: s.DeploymentsIndex()}, notFound("deployment")
		}
		return found{index: d.ModifyIndex, body: wire.DeploymentOut(d)}, require(id, auth.ReadJob, d.Namespace)
	})
}

func (a *API) listDeploymentAllocs(ctx context.Context, id auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		out := []*wire.AllocationListStub{}
		d := s.Deployment(w, r.ID)
		if d == nil {
			return found{index: s.AllocsIndex(), body: out}, nil
		}
		for al := range s.AllocsByJob(w, d.Namespace, d.JobID) {
			if al.DeploymentID == d.ID {
				out = append(out, wire.AllocStub(al, false, true))
			}
		}
		return found{index: s.AllocsIndex(), body: out}, require(id, auth.ReadJob, d.Namespace)
	})
}

func (a *API) listJobDeployments(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		out := []*wire.Deployment{}
		j := s.Job(nil, r.namespace(), r.ID)
		for d := range s.DeploymentsByJob(w, r.namespace(), r.ID) {
			if bool(r.All) || j == nil || d.JobCreateIndex == j.CreateIndex {
				out = append(out, wire.DeploymentOut(d))
			}
		}
		return found{index: s.DeploymentsIndex(), body: out}, nil
	})
}

func (a *API) getJobDeployment(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		d := s.LatestDeployment(w, r.namespace(), r.ID)
		if j := s.Job(nil, r.namespace(), r.ID); d == nil || j != nil && d.JobCreateIndex != j.CreateIndex {
			return found{index: s.DeploymentsIndex()}, nil
		}
		return found{index: d.ModifyIndex, body: wire.DeploymentOut(d)}, nil
	})
}

// deploymentChanged answers a change of a deployment.
type deploymentChanged struct {
	EvalID                string
	EvalCreateIndex       uint64
	DeploymentModifyIndex uint64
	RevertedJobVersion    *uint64
	Index                 uint64
}

// changing finds the deployment that a caller wants to change, and its job. what names the change in the refusal of a deployment that has ended.
func (a *API) changing(id auth.Identity, deployment, what string) (*state.Snapshot, *model.Deployment, *model.Job, error) {
	if err := uuid(deployment); err != nil {
		return nil, nil, nil, err
	}
	s := a.store.Snapshot()
	d := s.Deployment(nil, deployment)
	if d == nil {
		return nil, nil, nil, notFound("deployment")
	}
	if err := require(id, auth.SubmitJob, d.Namespace); err != nil {
		return nil, nil, nil, err
	}
	if !d.Active() {
		return nil, nil, nil, fault.New(fault.Conflict, "can't %s terminal deployment", what)
	}
	j := s.Job(nil, d.Namespace, d.JobID)
	if j == nil {
		return nil, nil, nil, notFound("job")
	}
	return s, d, j, nil
}

func (a *API) change(w http.ResponseWriter, r *http.Request, entry any, e *model.Evaluation) error {
	return a.decide(w, r, entry, e, func(result any, index uint64) (any, error) {
		out := &deploymentChanged{DeploymentModifyIndex: index, Index: index}
		if e != nil {
			out.EvalID, out.EvalCreateIndex = e.ID, index
		}
		if made, ok := result.(*command.Made); ok && made != nil && made.New {
			out.RevertedJobVersion = &made.Job.Version
		}
		return out, nil
	})
}

type promoteDeployment struct {
	ID   string                        `path:"id"`
	Body wire.DeploymentPromoteRequest `body:"json"`
}

func (a *API) promoteDeployment(w http.ResponseWriter, r *http.Request, id auth.Identity, req promoteDeployment) error {
	if !req.Body.All && len(req.Body.Groups) == 0 {
		return answer(http.StatusBadRequest, "must specify groups to promote, or all")
	}
	_, d, j, err := a.changing(id, req.ID, "promote")
	if err != nil {
		return err
	}
	groups := req.Body.Groups
	if req.Body.All {
		groups = nil
	}
	e := leader.DeploymentEval(d, j)
	return a.change(w, r, &command.DeploymentPromote{Now: time.Now().UnixNano(), DeploymentID: d.ID, Groups: groups, Eval: e}, e)
}

type pauseDeployment struct {
	ID   string                      `path:"id"`
	Body wire.DeploymentPauseRequest `body:"json"`
}

func (a *API) pauseDeployment(w http.ResponseWriter, r *http.Request, id auth.Identity, req pauseDeployment) error {
	verb := "pause"
	if !req.Body.Pause {
		verb = "resume"
	}
	_, d, j, err := a.changing(id, req.ID, verb)
	if err != nil {
		return err
	}
	entry := &command.DeploymentStatus{Now: time.Now().UnixNano(), Update: state.DeploymentStatus{DeploymentID: d.ID}}
	if req.Body.Pause {
		entry.Update.Status, entry.Update.Description = model.DeploymentPaused, leader.DeploymentPaused
	} else {
		entry.Update.Status, entry.Update.Description = model.DeploymentRunning, state.DeploymentIsRunning
		entry.Eval = leader.DeploymentEval(d, j)
	}
	return a.change(w, r, entry, entry.Eval)
}

type failDeployment struct {
	ID   string                     `path:"id"`
	Body wire.DeploymentFailRequest `body:"optional"`
}

func (a *API) failDeployment(w http.ResponseWriter, r *http.Request, id auth.Identity, req failDeployment) error {
	s, d, _, err := a.changing(id, req.ID, "fail")
	if err != nil {
		return err
	}
	entry := leader.FailDeployment(s, d, leader.DeploymentFailedByUs, leader.RevertsOnFailure(d), time.Now().UnixNano())
	return a.change(w, r, entry, entry.Eval)
}

type unblockDeployment struct {
	ID   string    `path:"id"`
	Body indexBody `body:"optional"` // Nomad's says the id again
}

// unblockDeployment lets a deployment go on that waits for those of other regions. There is one region, so there is none that waits.
func (a *API) unblockDeployment(w http.ResponseWriter, r *http.Request, id auth.Identity, req unblockDeployment) error {
	_, d, j, err := a.changing(id, req.ID, "unblock")
	if err != nil {
		return err
	}
	if d.Status != model.DeploymentBlocked {
		return fault.New(fault.Conflict, "can't unblock a deployment that is not blocked")
	}
	e := leader.DeploymentEval(d, j)
	return a.change(w, r, &command.DeploymentStatus{
		Now: time.Now().UnixNano(), Update: state.DeploymentStatus{DeploymentID: d.ID, Status: model.DeploymentRunning, Description: state.DeploymentIsRunning}, Eval: e,
	}, e)
}

type setDeploymentHealth struct {
	ID   string                            `path:"id"`
	Body wire.DeploymentAllocHealthRequest `body:"json"`
}

func (a *API) setDeploymentHealth(w http.ResponseWriter, r *http.Request, id auth.Identity, req setDeploymentHealth) error {
	if len(req.Body.HealthyAllocationIDs)+len(req.Body.UnhealthyAllocationIDs) == 0 {
		return answer(http.StatusBadRequest, "must specify at least one healthy or unhealthy allocation ID")
	}
	_, d, j, err := a.changing(id, req.ID, "set health of allocations for a")
	if err != nil {
		return err
	}
	e := leader.DeploymentEval(d, j)
	return a.change(w, r, &command.DeploymentHealth{
		Now: time.Now().UnixNano(), DeploymentID: d.ID, Healthy: req.Body.HealthyAllocationIDs, Unhealthy: req.Body.UnhealthyAllocationIDs, Eval: e,
	}, e)
}
