package leader

import (
	"context"
	"slices"
	"sync"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// heartbeats is when each node was last heard of, in this term. A new term starts them all afresh.
type heartbeats struct {
	bound time.Duration

	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

func newHeartbeats(bound time.Duration) *heartbeats {
	return &heartbeats{bound: bound, last: map[string]time.Time{}}
}

func (h *heartbeats) beat(node string, now time.Time) {
	h.mu.Lock()
	h.last[node] = now
	h.mu.Unlock()
}

// silent takes out the nodes that were not heard of for too long.
func (h *heartbeats) silent(now time.Time) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for id, t := range h.last {
		if now.Sub(t) > h.bound {
			out = append(out, id)
			delete(h.last, id)
		}
	}
	slices.Sort(out)
	return out
}

// watchHeartbeats marks nodes down that fell silent.
func (t *term) watchHeartbeats(ctx context.Context) error {
	tick := time.NewTicker(max(t.heartbeats.bound/20, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, id := range t.heartbeats.silent(now) {
				if err := t.markDown(ctx, id); err != nil && ctx.Err() == nil {
					t.heartbeats.beat(id, now.Add(time.Second-t.heartbeats.bound)) // again in a second
					t.cfg.Logger.WithFields(logging.Fields{"node_id": id, "error": err.Error()}).Warn("node could not be marked down")
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (t *term) markDown(ctx context.Context, id string) error {
	snap := t.cfg.Store.Snapshot()
	if n := snap.Node(nil, id); n == nil || n.Status == model.NodeDown {
		return nil
	}
	t.cfg.Logger.WithField("node_id", id).Warn("node is down: no heartbeat")
	ctx, cancel := context.WithTimeout(ctx, logBound)
	defer cancel()
	_, _, err := t.cfg.Log.Apply(ctx, &command.NodeStatus{
		Now: time.Now().UnixNano(), NodeID: id, Status: model.NodeDown, Description: "heartbeat missed", Evals: NodeEvals(snap, id),
	})
	return err
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
				ID: ident.New(), Namespace: j.Namespace, Priority: j.Priority, Type: j.Type, TriggeredBy: model.TriggerNodeUpdate,
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
		if !j.Stop && (j.Type == model.JobTypeSystem || j.Type == model.JobTypeSysbatch) {
			add(j)
		}
	}
	return out
}

// Heartbeat notes that a node is there, and reports how long it has until the next one.
func (l *Leader) Heartbeat(nodeID string) time.Duration {
	if t := l.current(); t != nil {
		t.heartbeats.beat(nodeID, time.Now())
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
	return map[string]int{"ready": c.Ready, "waiting": c.Waiting, "delayed": c.Delayed, "unacked": c.InWork, "blocked": c.Blocked}
}
