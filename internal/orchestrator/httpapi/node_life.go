package httpapi

import (
	"context"
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

func (a *API) nodeLifeTable() endpoint.Table {
	return putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("node.drain"+name, method, "/v1/node/{id}/drain", write(auth.NodeWrite, smallBody), a.drainNode),
			endpoint.Call("node.purge"+name, method, "/v1/node/{id}/purge", write(auth.NodeWrite, smallBody), a.purgeNode),
			endpoint.Call("node.evaluate"+name, method, "/v1/node/{id}/evaluate", write(auth.NodeWrite, smallBody), a.evaluateNode),
		}
	})
}

// nodeChanged answers a change of a node.
type nodeChanged struct {
	NodeModifyIndex uint64
	EvalID          string // of the first, for the client that knows of one
	EvalIDs         []string
	EvalCreateIndex uint64
	Index           uint64
}

func (a *API) nodeChanged(index uint64, evals []*model.Evaluation) reply {
	out := &nodeChanged{NodeModifyIndex: index, EvalIDs: []string{}, Index: index}
	for _, e := range evals {
		out.EvalIDs = append(out.EvalIDs, e.ID)
	}
	if len(evals) > 0 {
		out.EvalID, out.EvalCreateIndex = evals[0].ID, index
	}
	return a.written(index, out)
}

// changingNode finds the node that a caller wants to change.
func (a *API) changingNode(id string) (*state.Snapshot, *model.Node, error) {
	if err := uuid(id); err != nil {
		return nil, nil, err
	}
	s := a.store.Snapshot()
	n := s.Node(nil, id)
	if n == nil {
		return nil, nil, notFound("node")
	}
	return s, n, nil
}

type drainNode struct {
	ID   string                      `path:"id"`
	Body wire.NodeUpdateDrainRequest `body:"json"`
}

func (a *API) drainNode(ctx context.Context, id auth.Identity, r drainNode) (reply, error) {
	s, n, err := a.changingNode(r.ID)
	if err != nil {
		return reply{}, err
	}
	if r.Body.NodeID != "" && r.Body.NodeID != n.ID {
		return reply{}, answer(http.StatusBadRequest, "Node ID does not match")
	}
	u := state.DrainUpdate{NodeID: n.ID, MarkEligible: r.Body.MarkEligible, AccessorID: id.Name, Meta: r.Body.Meta}
	var evals []*model.Evaluation
	if spec := r.Body.DrainSpec; spec != nil {
		if r.Body.MarkEligible {
			return reply{}, answer(http.StatusBadRequest, "a node cannot be marked eligible while it is drained")
		}
		u.Spec = &state.DrainSpec{Deadline: spec.Deadline, IgnoreSystemJobs: spec.IgnoreSystemJobs}
	} else if r.Body.MarkEligible {
		evals = leader.NodeEvals(s, n.ID) // there is room again
	}
	_, index, err := a.apply(ctx, &command.NodeDrain{Now: time.Now().UnixNano(), Updates: []state.DrainUpdate{u}, Evals: evals})
	return a.nodeChanged(index, evals), err
}

type onNodeByID struct {
	ID   string    `path:"id"`
	Body indexBody `body:"optional"`
}

// purgeNode forgets a node. One that lives registers again.
func (a *API) purgeNode(ctx context.Context, _ auth.Identity, r onNodeByID) (reply, error) {
	s, n, err := a.changingNode(r.ID)
	if err != nil {
		return reply{}, err
	}
	evals := leader.NodeEvals(s, n.ID)
	_, index, err := a.apply(ctx, &command.NodeDeregister{Now: time.Now().UnixNano(), NodeIDs: []string{n.ID}, Evals: evals})
	return a.nodeChanged(index, evals), err
}

func (a *API) evaluateNode(ctx context.Context, _ auth.Identity, r onNodeByID) (reply, error) {
	s, n, err := a.changingNode(r.ID)
	if err != nil {
		return reply{}, err
	}
	evals := leader.NodeEvals(s, n.ID)
	if len(evals) == 0 {
		return a.nodeChanged(s.Index(), nil), nil
	}
	_, index, err := a.apply(ctx, &command.EvalUpdate{Now: time.Now().UnixNano(), Create: evals})
	return a.nodeChanged(index, evals), err
}
