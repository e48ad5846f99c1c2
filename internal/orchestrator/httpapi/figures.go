package httpapi

import (
	"cmp"
	"sync"
	"time"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// tally remembers the last count of the state, which takes a pass over all of it.
type tally struct {
	mu    sync.Mutex
	made  map[string]float64 // guarded by mu
	until time.Time          // guarded by mu
}

// restFactor keeps counting below a twentieth of one core: after a count that took t the next one is not before restFactor times t.
const restFactor = 20

func (t *tally) figures(now func() time.Time, count func() map[string]float64) map[string]float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if start := now(); t.made == nil || !start.Before(t.until) {
		t.made = count()
		end := now()
		t.until = end.Add(max(time.Second, restFactor*end.Sub(start)))
	}
	return t.made
}

// Figures sets what is read from the state and the queues, under Nomad's names where it has one. There is no figure per job, node or allocation, so their number
// stays small however large the cluster.
func (a *API) Figures(set func(name string, v float64)) {
	snap := a.store.Snapshot()
	for k, v := range a.tallied.figures(time.Now, func() map[string]float64 { return census(snap) }) {
		set(k, v)
	}
	set("nomad.state.snapshotIndex", float64(snap.Index()))
	leads := 0.0
	if a.cfg.Leader.Leading() {
		leads = 1
	}
	set("rockpool.leader.leading", leads)
	counts := a.cfg.Leader.Counts()
	for k, name := range brokerNames {
		set(name, float64(counts[k])) // 0 where another server leads
	}
	if leads == 0 || a.cfg.Cluster == nil {
		return
	}
	if h, err := a.cfg.Cluster.Health(); err == nil { // only a leader knows
		healthy := 0.0
		if h.Healthy {
			healthy = 1
		}
		set("nomad.nomad.autopilot.healthy", healthy)
		set("nomad.nomad.autopilot.failure_tolerance", float64(h.FailureTolerance))
	}
}

// brokerNames are the counts of the queues of evaluations and of plans.
var brokerNames = map[string]string{
	"ready": "nomad.nomad.broker.total_ready", "unacked": "nomad.nomad.broker.total_unacked", "waiting": "nomad.nomad.broker.total_pending",
	"delayed": "nomad.nomad.broker.total_waiting", "blocked": "nomad.nomad.blocked_evals.total_blocked", "plans": "nomad.nomad.plan.queue_depth",
}

// census counts what is in the state.
func census(snap *state.Snapshot) map[string]float64 {
	m := map[string]float64{"nomad.nomad.heartbeat.active": 0}
	for _, s := range []string{model.JobPending, model.JobRunning, model.JobDead} {
		m["nomad.nomad.job_status."+s] = 0
	}
	for _, s := range summaryNames {
		m["nomad.nomad.job_summary."+s] = 0
	}
	for j := range snap.Jobs(nil, "*", "") {
		m["nomad.nomad.job_status."+cmp.Or(j.Status, model.JobPending)]++
	}
	for al := range snap.Allocs(nil, "") {
		m["rockpool.allocations."+al.ClientStatus]++
		if s, ok := summaryNames[al.ClientStatus]; ok {
			m["nomad.nomad.job_summary."+s]++
		}
	}
	for n := range snap.Nodes(nil, "") {
		m["rockpool.nodes."+n.Status]++
		if n.Status != model.NodeDown {
			m["nomad.nomad.heartbeat.active"]++
		}
	}
	return m
}

// summaryNames are the words of job summaries for the states of allocations.
var summaryNames = map[string]string{
	model.ClientPending: "starting", model.ClientRunning: "running", model.ClientComplete: "complete", model.ClientFailed: "failed",
	model.ClientLost: "lost", model.ClientUnknown: "unknown",
}
