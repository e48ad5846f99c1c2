package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

type listEvals struct {
	query
	Status string `query:"status"`
	Job    string `query:"job"`
}

func (a *API) listEvals(ctx context.Context, _ auth.Identity, r listEvals) (reply, error) {
	return a.evals(ctx, r, func(list []*wire.Evaluation) any { return list })
}

func (a *API) countEvals(ctx context.Context, _ auth.Identity, r listEvals) (reply, error) {
	return a.evals(ctx, r, func(list []*wire.Evaluation) any { return struct{ Count int }{len(list)} })
}

func (a *API) evals(ctx context.Context, r listEvals, body func([]*wire.Evaluation) any) (reply, error) {
	if err := hexPrefix(r.Prefix); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		evals := mapped(s.Evals(w, r.Prefix), func(e *model.Evaluation) (*wire.Evaluation, bool) {
			ok := r.sees(e.Namespace) && (r.Status == "" || r.Status == e.Status) && (r.Job == "" || r.Job == e.JobID)
			if !ok {
				return nil, false
			}
			return wire.EvalOut(e), true
		})
		out, next, err := page(evals, &r.query, func(e *wire.Evaluation) string { return e.ID })
		return found{s.EvalsIndex(), body(out), next}, err
	})
}

type byID struct {
	query
	ID      string        `path:"id"`
	Related endpoint.Flag `query:"related"`
}

func (a *API) getEval(ctx context.Context, _ auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		e := s.Eval(w, r.ID)
		if e == nil {
			return found{index: s.EvalsIndex()}, notFound("eval")
		}
		out := wire.EvalOut(e)
		if r.Related {
			out.RelatedEvals = related(s, e)
		}
		return found{index: e.ModifyIndex, body: out}, nil
	})
}

// related are the evaluations that led to e or came from it.
func related(s *state.Snapshot, e *model.Evaluation) []*wire.EvaluationStub {
	out := []*wire.EvaluationStub{}
	seen := map[string]bool{e.ID: true}
	todo := []string{e.PreviousEval, e.NextEval, e.BlockedEval}
	for len(todo) > 0 && len(out) < 100 {
		id := todo[0]
		todo = todo[1:]
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		if o := s.Eval(nil, id); o != nil {
			out = append(out, wire.EvalStub(o))
			todo = append(todo, o.PreviousEval, o.NextEval, o.BlockedEval)
		}
	}
	return out
}

func (a *API) listEvalAllocs(ctx context.Context, _ auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		out := slices.Collect(mapped(s.AllocsByEval(w, r.ID), func(al *model.Allocation) (*wire.AllocationListStub, bool) {
			return wire.AllocStub(al, false, true), true
		}))
		if out == nil {
			out = []*wire.AllocationListStub{}
		}
		return found{index: s.AllocsIndex(), body: out}, nil
	})
}

type listAllocs struct {
	query
	Resources  endpoint.Flag `query:"resources"`
	TaskStates string        `query:"task_states"`
}

func (a *API) listAllocs(ctx context.Context, _ auth.Identity, r listAllocs) (reply, error) {
	if err := hexPrefix(r.Prefix); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		stubs := mapped(s.Allocs(w, r.Prefix), func(al *model.Allocation) (*wire.AllocationListStub, bool) {
			if !r.sees(al.Namespace) {
				return nil, false
			}
			return wire.AllocStub(al, bool(r.Resources), r.TaskStates != "false"), true
		})
		out, next, err := page(stubs, &r.query, func(s *wire.AllocationListStub) string { return s.ID })
		return found{s.AllocsIndex(), out, next}, err
	})
}

func (a *API) getAlloc(ctx context.Context, _ auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		al := s.Alloc(w, r.ID)
		if al == nil {
			return found{index: s.AllocsIndex()}, notFound("alloc")
		}
		return found{index: al.ModifyIndex, body: wire.AllocOut(al)}, nil
	})
}

type stopAlloc struct {
	ID              string        `path:"id"`
	Reschedule      endpoint.Flag `query:"reschedule"`
	NoShutdownDelay endpoint.Flag `query:"no_shutdown_delay"`
}

func (a *API) stopAlloc(w http.ResponseWriter, r *http.Request, id auth.Identity, req stopAlloc) error {
	if err := uuid(req.ID); err != nil {
		return err
	}
	al := a.store.Snapshot().Alloc(nil, req.ID)
	if al == nil {
		return notFound("alloc")
	}
	if err := require(id, auth.AllocLife, al.Namespace); err != nil {
		return err
	}
	e := leader.JobEval(al.Job, model.TriggerAllocStop)
	return a.decide(w, r, &command.AllocStop{
		Now: time.Now().UnixNano(), AllocID: al.ID, Description: sched.StoppedByUser, Eval: e,
		Reschedule: bool(req.Reschedule), NoShutdownDelay: bool(req.NoShutdownDelay),
	}, e, func(done any, index uint64) (any, error) {
		if !done.(bool) {
			return nil, notFound("alloc")
		}
		return struct {
			EvalID string
			Index  uint64
		}{e.ID, index}, nil
	})
}

type deleteEvals struct {
	Namespace string                 `query:"namespace"`
	Filter    string                 `query:"filter"`
	Caller    endpoint.Caller        `caller:""`
	Body      wire.EvalDeleteRequest `body:"optional"`
}

const evalsAtOnce = 512 // in one log entry

// deleteEvals removes evaluations while nobody works on any: those named, or those that a filter finds.
func (a *API) deleteEvals(ctx context.Context, id auth.Identity, r deleteEvals) (reply, error) {
	s := a.store.Snapshot()
	filter := cmp.Or(r.Body.Filter, r.Filter)
	switch {
	case !s.SchedulerConfig().PauseBroker:
		return reply{}, answer(http.StatusInternalServerError, "eval broker is enabled; eval broker must be paused to delete evals")
	case len(r.Body.EvalIDs) == 0 && filter == "":
		return reply{}, answer(http.StatusBadRequest, "evals must be deleted by either ID or filter")
	case len(r.Body.EvalIDs) > 0 && filter != "":
		return reply{}, answer(http.StatusBadRequest, "evals cannot be deleted by both ID and filter")
	}
	ids := r.Body.EvalIDs
	for _, e := range ids {
		if err := uuid(e); err != nil {
			return reply{}, err
		}
		if s.Eval(nil, e) == nil {
			return reply{}, notFound("eval")
		}
	}
	if filter != "" {
		q := query{Namespace: cmp.Or(r.Namespace, auth.Everywhere), Filter: filter, Caller: r.Caller}
		list, _, err := page(mapped(s.Evals(nil, ""), func(e *model.Evaluation) (*wire.Evaluation, bool) {
			return wire.EvalOut(e), q.sees(e.Namespace)
		}), &q, func(e *wire.Evaluation) string { return e.ID })
		if err != nil {
			return reply{}, err
		}
		for _, e := range list {
			ids = append(ids, e.ID)
		}
	}
	count, index := 0, s.EvalsIndex()
	for step := range slices.Chunk(ids, evalsAtOnce) {
		n, at, err := a.apply(ctx, &command.EvalDelete{Now: time.Now().UnixNano(), IDs: step})
		if err != nil {
			return reply{}, err
		}
		count, index = count+n.(int), at
	}
	return a.written(index, struct {
		Count int
		Index uint64
	}{count, index}), nil
}

type listNodes struct {
	query
	Resources endpoint.Flag `query:"resources"`
	OS        endpoint.Flag `query:"os"`
}

func (a *API) listNodes(ctx context.Context, _ auth.Identity, r listNodes) (reply, error) {
	if err := hexPrefix(r.Prefix); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		stubs := mapped(s.Nodes(w, r.Prefix), func(n *model.Node) (*wire.NodeListStub, bool) {
			return wire.NodeStub(n, bool(r.Resources), bool(r.OS)), true
		})
		out, next, err := page(stubs, &r.query, func(n *wire.NodeListStub) string { return n.ID })
		return found{s.NodesIndex(), out, next}, err
	})
}

func (a *API) getNode(ctx context.Context, _ auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		n := s.Node(w, r.ID)
		if n == nil {
			return found{index: s.NodesIndex()}, notFound("node")
		}
		return found{index: n.ModifyIndex, body: wire.NodeOut(n)}, nil
	})
}

func (a *API) listNodeAllocs(ctx context.Context, _ auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		out := []*wire.Allocation{}
		for al := range s.AllocsByNode(w, r.ID) {
			if !r.Caller.MayIn(auth.ReadJob, al.Namespace) {
				continue
			}
			out = append(out, wire.AllocOut(al))
		}
		slices.SortFunc(out, func(x, y *wire.Allocation) int {
			return cmp.Or(cmp.Compare(x.CreateIndex, y.CreateIndex), cmp.Compare(x.ID, y.ID))
		})
		return found{index: s.AllocsIndex(), body: out}, nil
	})
}
