package leader

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Prober asks a node whether it is there, over a connection that the node itself holds. An error means that nobody knows.
type Prober interface {
	Probe(ctx context.Context, nodeID string) error
}

// Bounds of heartbeats.
const (
	beatsPerSecond = 50              // of all nodes together: with more nodes each of them comes less often
	leastDowns     = 5               // nodes that may be marked down in a minute, however small the cluster
	downShare      = 10              // one in so many nodes may be, in a large one
	probeBound     = 2 * time.Second // for a node to answer
	probesAtOnce   = 32
	noteEvery      = 5 * time.Second // how often the next leader is told who is silent
)

// heartbeats is when each node is due, in this term. It is a core: it takes the time.
type heartbeats struct {
	least time.Duration // TTL of a small cluster
	grace time.Duration // on top of a TTL before a node counts as down

	mu     sync.Mutex
	nodes  map[string]*beat     // guarded by mu; by id: those that should be heard of
	cut    map[string]time.Time // guarded by mu; by id: disconnected nodes, and when nothing on them is waited for any more
	noted  map[string]bool      // guarded by mu; nodes that the state has as silent
	tokens float64              // guarded by mu; nodes that may be marked down now
	filled time.Time            // guarded by mu; when tokens was worked out
}

type beat struct {
	last  time.Time
	lease time.Duration // what the node was told, or the time that it is granted
}

func newHeartbeats(least, grace time.Duration) *heartbeats {
	return &heartbeats{least: least, grace: grace, nodes: map[string]*beat{}, cut: map[string]time.Time{}, noted: map[string]bool{}, tokens: -1}
}

// ttl follows the cluster's size, so that the leader gets no more than so many heartbeats a second. mu is held.
func (h *heartbeats) ttl() time.Duration {
	return max(h.least, time.Duration(len(h.nodes))*time.Second/beatsPerSecond)
}

// beat notes that a node was heard of, and returns how long it has until the next time. Nodes that came together are spread.
func (h *heartbeats) beat(node string, now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.nodes[node]
	if b == nil {
		b = &beat{}
		h.nodes[node] = b
	}
	delete(h.cut, node)
	ttl := h.ttl()
	b.last, b.lease = now, ttl+rand.N(ttl/2+1)
	return b.lease
}

// grant expects a node that a former leader heard of last at that time, 0 = lately. It has at least the grace: it may still be looking for the new leader.
func (h *heartbeats) grant(node string, last int64, now time.Time) {
	h.beat(node, now)
	if last == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.nodes[node]
	b.last = time.Unix(0, last)
	b.lease = max(b.lease, now.Sub(b.last))
	h.noted[node] = true
}

// disconnect expects a node no more, until nothing on it is waited for.
func (h *heartbeats) disconnect(node string, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, node)
	h.cut[node] = until
}

// forget drops a node.
func (h *heartbeats) forget(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, node)
	delete(h.cut, node)
}

// overdue are the nodes that were not heard of for too long, those first that are silent for longest.
func (h *heartbeats) overdue(now time.Time) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for id, b := range h.nodes {
		if now.Sub(b.last) > b.lease+h.grace {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(x, y string) int {
		if c := h.nodes[x].last.Compare(h.nodes[y].last); c != 0 {
			return c
		}
		return strings.Compare(x, y)
	})
	return out
}

// expired are the disconnected nodes for which nothing waits any more.
func (h *heartbeats) expired(now time.Time) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for id, at := range h.cut {
		if !now.Before(at) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// awaited reports whether a node is overdue or disconnected still.
func (h *heartbeats) awaited(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.nodes[node]; b != nil {
		return time.Since(b.last) > b.lease+h.grace
	}
	_, cut := h.cut[node]
	return cut
}

// allow takes up to n of what may be marked down now. When many fall silent at once it is rather the leader or the network that fails than they, and what
// they run must not all be started again: a share of the cluster goes in a minute, the others wait, and may be heard of meanwhile.
func (h *heartbeats) allow(n int, now time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	most := float64(max(leastDowns, len(h.nodes)/downShare))
	if h.tokens < 0 {
		h.tokens = most
	} else {
		h.tokens = min(most, h.tokens+most*now.Sub(h.filled).Minutes())
	}
	h.filled = now
	n = min(n, int(h.tokens))
	h.tokens -= float64(n)
	return n
}

// notes is what the state should learn of who is silent since it was told last.
func (h *heartbeats) notes(now time.Time) (silent []state.SilentNode, heard []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, b := range h.nodes {
		switch late := now.Sub(b.last) > b.lease; {
		case late && !h.noted[id]:
			silent = append(silent, state.SilentNode{NodeID: id, Since: b.last.UnixNano()})
		case !late && h.noted[id]:
			heard = append(heard, id)
		}
	}
	for id := range h.noted {
		if h.nodes[id] == nil {
			heard = append(heard, id) // it is down: the state says so
		}
	}
	slices.SortFunc(silent, func(a, b state.SilentNode) int { return strings.Compare(a.NodeID, b.NodeID) })
	slices.Sort(heard)
	return silent, heard
}

// toldOf notes that the state knows.
func (h *heartbeats) toldOf(silent []state.SilentNode, heard []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range silent {
		h.noted[n.NodeID] = true
	}
	for _, id := range heard {
		delete(h.noted, id)
	}
}

// watchHeartbeats marks nodes down, or disconnected, that fell silent.
func (t *term) watchHeartbeats(ctx context.Context) error {
	h := t.heartbeats
	tick := time.NewTicker(min(max((h.least+h.grace)/20, 10*time.Millisecond), time.Second))
	defer tick.Stop()
	var noted time.Time
	for {
		select {
		case now := <-tick.C:
			late := h.overdue(now)
			for _, id := range append(t.dead(ctx, late[:h.allow(len(late), now)]), h.expired(now)...) {
				if h.awaited(id) { // it may have been heard of while another one was dealt with
					t.lose(ctx, id, now)
				}
			}
			if now.Sub(noted) >= noteEvery {
				noted = now
				t.note(ctx, now)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// dead are the nodes that do not answer either when they are asked.
func (t *term) dead(ctx context.Context, nodes []string) []string {
	if t.cfg.Prober == nil || len(nodes) == 0 {
		return nodes
	}
	answered := make([]bool, len(nodes))
	slots := make(chan struct{}, probesAtOnce)
	var wg sync.WaitGroup
	for i, id := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			pctx, cancel := context.WithTimeout(ctx, probeBound)
			defer cancel()
			answered[i] = t.cfg.Prober.Probe(pctx, id) == nil
		})
	}
	wg.Wait()
	var out []string
	for i, id := range nodes {
		if !answered[i] {
			out = append(out, id)
			continue
		}
		t.heartbeats.beat(id, time.Now())
		t.cfg.Logger.WithField("node_id", id).Warn("node sends no heartbeats, but answers when it is asked")
	}
	return out
}

func (t *term) lose(ctx context.Context, id string, now time.Time) {
	if err := t.markDown(ctx, id, now); err != nil && ctx.Err() == nil { // it stays overdue, and its turn comes again
		t.cfg.Logger.WithFields(logging.Fields{"node_id": id, "error": err.Error()}).Warn("node could not be marked down")
	}
}

// markDown takes a node for down, or for disconnected while allocations on it may be waited for.
func (t *term) markDown(ctx context.Context, id string, now time.Time) error {
	snap := t.cfg.Store.Snapshot()
	n := snap.Node(nil, id)
	if n == nil || n.Status == model.NodeDown {
		t.heartbeats.forget(id)
		return nil
	}
	e := &command.NodeStatus{Now: now.UnixNano(), NodeID: id, Status: model.NodeDown, Description: "heartbeat missed", Evals: NodeEvals(snap, id)}
	until := waitedFor(snap, n, now)
	if until.After(now) {
		if n.Status == model.NodeDisconnected {
			t.heartbeats.disconnect(id, until)
			return nil
		}
		e.Status = model.NodeDisconnected
	}
	t.cfg.Logger.WithFields(logging.Fields{"node_id": id, "status": e.Status}).Warn("node was not heard of in time")
	ctx, cancel := context.WithTimeout(ctx, logBound)
	defer cancel()
	if _, _, err := t.cfg.Log.Apply(ctx, e); err != nil {
		return err
	}
	if e.Status == model.NodeDisconnected {
		t.heartbeats.disconnect(id, until)
	} else {
		t.heartbeats.forget(id)
	}
	return nil
}

// waitedFor is until when anything on a node that is cut off may come back, as the disconnect policies of its groups say; before now = not at all. The time counts
// from when the node was cut off. The scheduler looks at each allocation when its own time is over.
func waitedFor(snap *state.Snapshot, n *model.Node, now time.Time) (until time.Time) {
	since := now
	if n.Status == model.NodeDisconnected {
		since = time.Unix(0, n.StatusUpdatedAt)
	}
	for a := range snap.AllocsByNode(nil, n.ID) {
		g := a.Job.Group(a.TaskGroup)
		if a.Terminal() || g == nil || g.Disconnect == nil || a.ClientStatus != model.ClientRunning && a.ClientStatus != model.ClientUnknown {
			continue
		}
		if at := since.Add(g.Disconnect.LostAfter); g.Disconnect.LostAfter > 0 && at.After(until) {
			until = at
		}
	}
	return until
}

// note tells the state who is silent. It costs an entry only when that has changed.
func (t *term) note(ctx context.Context, now time.Time) {
	silent, heard := t.heartbeats.notes(now)
	if len(silent)+len(heard) == 0 {
		return
	}
	if t.applyAll(ctx, "the list of silent nodes", []any{&command.NodeSilence{Now: now.UnixNano(), Silent: silent, Heard: heard}}) == nil {
		t.heartbeats.toldOf(silent, heard)
	}
}

// NodeEvals are the evaluations that a change of a node asks for: one for each job that runs something there, and one for
// each system job.
func NodeEvals(snap *state.Snapshot, nodeID string) []*model.Evaluation {
	var out []*model.Evaluation
	seen := map[[2]string]bool{}
	add := func(j *model.Job) {
		if k := [2]string{j.Namespace, j.ID}; !seen[k] {
			seen[k] = true
			out = append(out, &model.Evaluation{
				ID: ident.NewNear(), Namespace: j.Namespace, Priority: j.Priority, Type: j.Type, TriggeredBy: model.TriggerNodeUpdate,
				JobID: j.ID, NodeID: nodeID, JobModifyIndex: j.JobModifyIndex, Status: model.EvalPending,
			})
		}
	}
	for a := range snap.AllocsByNode(nil, nodeID) {
		if !a.ClientTerminal() {
			add(a.Job)
		}
	}
	for j := range snap.Jobs(nil, "*", "") {
		if !j.Stop && !j.IsTemplate() && (j.Type == model.JobTypeSystem || j.Type == model.JobTypeSysbatch) {
			add(j)
		}
	}
	return out
}

// Heartbeat notes that a node is there, and reports how long it has until the next one.
func (l *Leader) Heartbeat(nodeID string) time.Duration {
	if t := l.current(); t != nil {
		return t.heartbeats.beat(nodeID, time.Now())
	}
	return l.cfg.HeartbeatTTL
}

// Hold keeps back the end of an evaluation until its creator's answer has left; see completions.
func (l *Leader) Hold(evalID string) (release func(sent bool)) { return l.completions.hold(evalID) }

// Counts are the queue's figures.
func (l *Leader) Counts() map[string]int {
	t := l.current()
	if t == nil {
		return nil
	}
	c := t.broker.Counts()
	return map[string]int{"ready": c.Ready, "waiting": c.Waiting, "delayed": c.Delayed, "unacked": c.InWork, "blocked": c.Blocked, "plans": t.plans.Waiting()}
}

// expect sets up the heartbeats of a new term. All nodes have their full time to find this server, but for those that were silent before.
func (t *term) expect(snap *state.Snapshot, now time.Time) {
	silent := map[string]int64{}
	for s := range snap.SilentNodes() {
		silent[s.NodeID] = s.Since
	}
	for n := range snap.Nodes(nil, "") {
		switch n.Status {
		case model.NodeDown:
		case model.NodeDisconnected:
			t.heartbeats.disconnect(n.ID, waitedFor(snap, n, now))
		default:
			t.heartbeats.grant(n.ID, silent[n.ID], now)
		}
	}
}
