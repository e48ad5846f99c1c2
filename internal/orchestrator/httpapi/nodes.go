package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

type setEligibility struct {
	ID   string `path:"id"`
	Body struct {
		NodeID, Eligibility string
	} `body:"json"`
}

func (a *API) setEligibility(ctx context.Context, _ auth.Identity, r setEligibility) (reply, error) {
	if r.Body.Eligibility != model.NodeEligible && r.Body.Eligibility != model.NodeIneligible {
		return reply{}, answer(http.StatusInternalServerError, "invalid scheduling eligibility %q", r.Body.Eligibility)
	}
	snap := a.store.Snapshot()
	if snap.Node(nil, r.ID) == nil {
		return reply{}, notFound("node")
	}
	if snap.Node(nil, r.ID).Drain != nil && r.Body.Eligibility == model.NodeEligible {
		return reply{}, answer(http.StatusInternalServerError, "can not set node's scheduling eligibility to eligible while it is draining")
	}
	evals := leader.NodeEvals(snap, r.ID)
	if r.Body.Eligibility == model.NodeIneligible {
		evals = nil
	}
	_, index, err := a.apply(ctx, &command.NodeEligibility{
		Now: time.Now().UnixNano(), NodeID: r.ID, Eligibility: r.Body.Eligibility, Evals: evals,
	})
	ids := []string{}
	for _, e := range evals {
		ids = append(ids, e.ID)
	}
	return a.written(index, struct {
		NodeModifyIndex uint64
		EvalIDs         []string
		EvalCreateIndex uint64
		Index           uint64
	}{index, ids, index, index}), err
}

const secretHeader = "X-Rockpool-Node-Secret"

// nodeOf is the node that a request's secret proves it to come from, if its path is that of a node. A node that is not known
// yet proves instead that it may join.
func (a *API) nodeOf(r *http.Request) string {
	id := nodeInPath(r)
	given := r.Header.Get(secretHeader)
	if id == "" || given == "" {
		return ""
	}
	n := a.store.Snapshot().Node(nil, id)
	switch {
	case n == nil:
		if a.mayJoin(token(r)) {
			return id
		}
	case auth.TokenEqual(given, n.SecretID):
		return id
	}
	return ""
}

type registerNode struct {
	ID   string     `path:"id"`
	Body model.Node `body:"json"`
}

func (a *API) registerNode(ctx context.Context, who auth.Identity, r registerNode) (reply, error) {
	n := r.Body
	switch {
	case who.NodeID != r.ID || n.ID != r.ID:
		return reply{}, fault.New(fault.Forbidden, "the node's id differs from that of the path")
	case !ident.Valid(n.ID):
		return reply{}, fault.New(fault.Invalid, "the node's id is not a UUID")
	case n.SecretID == "":
		return reply{}, fault.New(fault.Invalid, "the node has no secret")
	}
	snap := a.store.Snapshot()
	old := snap.Node(nil, n.ID)
	if old != nil && !auth.TokenEqual(n.SecretID, old.SecretID) {
		return reply{}, fault.New(fault.Forbidden, "the node's secret differs from the known one")
	}
	n.NodePool = cmp.Or(n.NodePool, "default")
	n.Datacenter = cmp.Or(n.Datacenter, a.cfg.Datacenter, "dc1")
	n.Status = cmp.Or(n.Status, model.NodeReady)
	if err := plausible(&n); err != nil {
		return reply{}, err
	}
	if old == nil {
		// Of two that come with the same id at once the second would replace the first, and its secret.
		if _, busy := a.joining.LoadOrStore(n.ID, true); busy {
			return reply{}, fault.New(fault.Conflict, "the node is being registered")
		}
		defer a.joining.Delete(n.ID)
		if old = a.store.Snapshot().Node(nil, n.ID); old != nil {
			return reply{}, fault.New(fault.Conflict, "the node has been registered meanwhile")
		}
	} else if err := a.mayMove(shownToken(ctx), old, &n); err != nil {
		return reply{}, err
	}
	var evals []*model.Evaluation
	if old == nil || old.Status != n.Status {
		evals = leader.NodeEvals(snap, n.ID)
	}
	var entry any = &command.NodeRegister{Now: time.Now().UnixNano(), Node: &n, Evals: evals}
	if old == nil {
		by, err := a.introduce(shownToken(ctx), &n, evals)
		if err != nil {
			return reply{}, err
		}
		if by != nil {
			entry = by
		}
	}
	_, index, err := a.apply(ctx, entry)
	if err != nil {
		return reply{}, err
	}
	if old == nil || old.Status != n.Status { // the node itself tells of what it does
		logging.From(ctx).WithFields(logging.Fields{"node_id": n.ID, "node_name": n.Name}).Info("node joined")
	}
	return a.written(index, a.lease(n.ID, index)), nil
}

// lease answers a node that was heard of.
func (a *API) lease(nodeID string, index uint64) model.NodeLease {
	l := model.NodeLease{HeartbeatTTL: a.cfg.Leader.Heartbeat(nodeID), Index: index, Packed: true}
	if a.cfg.Servers != nil {
		l.Servers = a.cfg.Servers()
	}
	return l
}

type nodePath struct {
	ID string `path:"id"`
}

// heartbeat costs no log entry, unless the node was taken for down.
func (a *API) heartbeat(ctx context.Context, _ auth.Identity, r nodePath) (reply, error) {
	snap := a.store.Snapshot()
	n := snap.Node(nil, r.ID)
	if n == nil {
		return reply{}, notFound("node")
	}
	index := snap.Index()
	if n.Status == model.NodeDown || n.Status == model.NodeDisconnected {
		var err error
		_, index, err = a.apply(ctx, &command.NodeStatus{
			Now: time.Now().UnixNano(), NodeID: n.ID, Status: model.NodeReady, Evals: leader.NodeEvals(snap, n.ID),
		})
		if err != nil {
			return reply{}, err
		}
	}
	return a.written(index, a.lease(n.ID, index)), nil
}

type reportAllocs struct {
	ID   string  `path:"id"`
	Body reports `body:"json"`
}

func (a *API) reportAllocs(ctx context.Context, _ auth.Identity, r reportAllocs) (reply, error) {
	snap := a.store.Snapshot()
	if snap.Node(nil, r.ID) == nil {
		return reply{}, notFound("node")
	}
	now := time.Now().UnixNano()
	updates, err := reported(snap, r.ID, r.Body, now)
	if err != nil {
		return reply{}, err
	}
	a.cfg.Leader.Heartbeat(r.ID)
	if len(updates) == 0 {
		return a.written(snap.Index(), indexBody{snap.Index()}), nil
	}
	_, index, err := a.apply(ctx, &command.AllocUpdates{Now: now, NodeID: r.ID, Allocs: updates, Evals: followUps(snap, updates)})
	a.cfg.Leader.Heartbeat(r.ID)
	return a.written(index, indexBody{index}), err
}

// followUps are the evaluations that ended allocations ask for: where a failed one may be replaced, and where a service
// or a job that waits for its old allocations to end has one less, and where one is back that was given up.
func followUps(snap *state.Snapshot, updates []*model.AllocUpdate) []*model.Evaluation {
	var out []*model.Evaluation
	seen := map[[2]string]bool{}
	for _, u := range updates {
		al := snap.Alloc(nil, u.ID)
		if al == nil || al.ClientTerminal() || al.DesiredStatus != model.DesiredRun {
			continue
		}
		j := snap.Job(nil, al.Namespace, al.JobID)
		if j == nil || j.Stop {
			continue
		}
		g := j.Group(al.TaskGroup)
		failed := u.ClientStatus == model.ClientFailed && g != nil && sched.MayReschedule(g.Reschedule)
		ended := u.ClientStatus == model.ClientComplete && j.Type == model.JobTypeService
		back := al.ClientStatus == model.ClientUnknown && u.ClientStatus != model.ClientUnknown
		k := [2]string{j.Namespace, j.ID}
		if !failed && !ended && !back || seen[k] {
			continue
		}
		seen[k] = true
		trigger := model.TriggerAllocFailure
		if back {
			trigger = model.TriggerReconnect
		}
		out = append(out, leader.JobEval(j, trigger))
	}
	return out
}

const (
	pushIdle  = 10 * time.Second // between signs of life
	pushBound = 10 * time.Second // for a node to take a message
)

// unknownNode is said to a node that this server does not know. It registers anew where it is not found, which only the leader can say: another server may
// not have heard of its registration yet.
func (a *API) unknownNode() error {
	if a.cfg.Leader.Leading() {
		return notFound("node")
	}
	return fault.New(fault.Unavailable, "this server has not heard of the node yet")
}

// watchNode pushes a node's allocations: all of them first, then each that the servers changed, at the moment of its commit.
// A message is made from the state, not from a queue, so a node that is slow to read gets fewer and newer ones; one that does
// not read at all is cut, and starts over with a full message.
func (a *API) watchNode(w http.ResponseWriter, r *http.Request, _ auth.Identity, req nodePath) error {
	ctx, done, err := a.conns.begin(r.Context(), a.closing)
	if err != nil {
		return err
	}
	defer done()
	if a.store.Snapshot().Node(nil, req.ID) == nil {
		return a.unknownNode()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	rc := http.NewResponseController(w)
	send := func(message func(*jsonWriter) error) error {
		line := newJSONWriter()
		if err := message(line); err != nil {
			return err
		}
		line.WriteByte('\n')
		_ = rc.SetWriteDeadline(time.Now().Add(pushBound))
		if _, err := w.Write(line.Bytes()); err != nil {
			return err
		}
		line.release()
		return rc.Flush()
	}
	dense := r.Header.Get("Accept") == model.PackedType
	wake, unwatch := a.pushes.watch(req.ID)
	defer unwatch()
	idle := time.NewTimer(pushIdle)
	defer idle.Stop()
	sent, secret := uint64(0), r.Header.Get(secretHeader)
	beyond := uint64(0) // nodes ignore what is not newer than what they were told before a restore
	for a.stillNode(req.ID, secret) {
		replaced := a.store.Replaced()
		msg := pushSince(a.store.Snapshot(), req.ID, sent)
		if msg.Full && msg.Generation > beyond || !msg.Full && len(msg.Allocs)+len(msg.Purged) > 0 {
			if err := send(func(line *jsonWriter) error { return a.push(line, msg, dense) }); err != nil {
				return err
			}
			sent = msg.Generation
			idle.Reset(pushIdle)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-wake:
				waiting = false
			case <-replaced: // everything may be another, at an index of before: the node is told anew
				beyond, sent, waiting = max(beyond, sent), 0, false
			case <-idle.C:
				if err := send(func(line *jsonWriter) error { return line.add(struct{}{}) }); err != nil {
					return err
				}
				idle.Reset(pushIdle)
				waiting = false // and see whether it is a node yet
			}
		}
	}
	return nil
}
