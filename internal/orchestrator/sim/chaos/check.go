package chaos

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// slot is a place of a job that one allocation fills.
type slot struct {
	namespace, job string
	created        uint64 // of the job: one that was purged and registered anew has other slots
	name           string
}

// PlacedOnce checks that no two allocations fill the same slot of the job: wanted, and not ended as far as their nodes have said. It holds after every entry.
func PlacedOnce(s *state.Snapshot, namespace, job string) error {
	var errs []error
	seen := map[slot]string{}
	for a := range s.AllocsByJob(nil, namespace, job) {
		if a.DesiredStatus != model.DesiredRun || a.ClientTerminal() {
			continue
		}
		k := slot{namespace, job, a.Job.CreateIndex, a.Name}
		if other := seen[k]; other != "" {
			o := s.Alloc(nil, other)
			errs = append(errs, fmt.Errorf("placed twice at index %d: %s is both %s (%s on %s since %d) and %s (%s on %s since %d)", s.Index(), a.Name, other, o.ClientStatus, o.NodeID, o.CreateIndex,
				a.ID, a.ClientStatus, a.NodeID, a.CreateIndex))
		}
		seen[k] = a.ID
	}
	return errors.Join(errs...)
}

// Ended checks that no evaluation is left that could be brought to its end.
func Ended(s *state.Snapshot) error {
	var errs []error
	for e := range s.Evals(nil, "") {
		if !e.Terminal() && e.Status != model.EvalBlocked {
			errs = append(errs, fmt.Errorf("evaluation %s of job %s (%s) is still %s, to wait until %d", e.ID, e.JobID, e.TriggeredBy, e.Status, e.WaitUntil))
		}
	}
	return errors.Join(errs...)
}

// Placed checks that each job that is not stopped has what it asks for: each group as many allocations as its count, running, or ended where it is a batch.
func Placed(s *state.Snapshot) error {
	var errs []error
	for j := range s.Jobs(nil, "*", "") {
		if j.Stop || j.Type == model.JobTypeSystem || j.Type == model.JobTypeSysbatch {
			continue
		}
		for _, g := range j.TaskGroups {
			n := 0
			for a := range s.AllocsByJob(nil, j.Namespace, j.ID) {
				running := a.DesiredStatus == model.DesiredRun && a.ClientStatus == model.ClientRunning
				done := j.Type == model.JobTypeBatch && a.ClientStatus == model.ClientComplete && a.DesiredStatus == model.DesiredRun
				if a.TaskGroup == g.Name && a.Job.CreateIndex == j.CreateIndex && (running || done) {
					n++
				}
			}
			if n < g.Count && len(g.Tasks[0].Resources.Devices) > 0 {
				if node := roomFor(s, g); node != "" {
					errs = append(errs, fmt.Errorf("job %s has %d allocations of group %s at work, not %d, and there are devices for it on node %s", j.ID, n, g.Name, g.Count, node))
				}
			} else if n != g.Count {
				errs = append(errs, fmt.Errorf("job %s has %d allocations of group %s at work, not %d", j.ID, n, g.Name, g.Count))
			}
		}
	}
	return errors.Join(errs...)
}

// Held checks that nodes hold what the servers want to run there and nothing else. held has, by node, the ids of the allocations that run on it. What was
// purged, stopped or given up for lost must have ended everywhere.
func Held(s *state.Snapshot, held map[string][]string) error {
	var errs []error
	wanted := map[string]bool{}
	for a := range s.Allocs(nil, "") {
		if a.DesiredStatus == model.DesiredRun && a.ClientStatus == model.ClientRunning {
			wanted[a.ID] = true
			if !slices.Contains(held[a.NodeID], a.ID) {
				errs = append(errs, fmt.Errorf("allocation %s (%s) is to run on node %s, which does not hold it", a.ID, a.Name, a.NodeID))
			}
		}
	}
	for _, node := range slices.Sorted(maps.Keys(held)) {
		for _, id := range held[node] {
			switch a := s.Alloc(nil, id); {
			case a == nil:
				errs = append(errs, fmt.Errorf("node %s still runs allocation %s, which was purged", node, id))
			case a.NodeID != node:
				errs = append(errs, fmt.Errorf("node %s runs allocation %s (%s) of node %s", node, id, a.Name, a.NodeID))
			case !wanted[id]:
				errs = append(errs, fmt.Errorf("node %s still runs allocation %s (%s), which is %s and %s", node, id, a.Name, a.DesiredStatus, a.ClientStatus))
			}
		}
	}
	return errors.Join(errs...)
}

// Equal checks that servers have the same state at the same index.
func Equal(stores map[string]*state.Store) error {
	type version struct {
		index uint64
		hash  string
	}
	var first version
	var of string
	for _, name := range slices.Sorted(maps.Keys(stores)) {
		h, err := stores[name].Hash()
		if err != nil {
			return fmt.Errorf("hash the state of %s: %w", name, err)
		}
		v := version{stores[name].Index(), h}
		if of == "" {
			first, of = v, name
		}
		if v != first {
			return fmt.Errorf("the states differ: %s has %s at index %d, %s has %s at index %d", of, first.hash, first.index, name, v.hash, v.index)
		}
	}
	return nil
}

// Monitor looks at every update of every server, and remembers the first thing that must not be. Its methods may be called from many goroutines.
type Monitor struct {
	mu      sync.Mutex
	digests map[uint64]digest // guarded by mu; by index
	err     error             // guarded by mu
	updates int               // guarded by mu
	holders map[string]bool   // guarded by mu; allocations with devices
	waited  map[string]bool   // guarded by mu; evaluations that found no room
}

type digest struct {
	sum    uint64
	server string
	text   string
}

// NewMonitor makes one.
func NewMonitor() *Monitor { return &Monitor{digests: map[uint64]digest{}, holders: map[string]bool{}, waited: map[string]bool{}} }

// Watch looks at a server's updates from now on. An update that the server makes once more after a restart is compared with its first time.
func (m *Monitor) Watch(server string, store *state.Store) (end func()) {
	return store.Observe(func(c state.Commit) {
		m.update(server, c)
		snap := store.Snapshot()
		jobs, nodes := map[[2]string]bool{}, map[string]bool{}
		for _, ch := range c.Changes {
			if e, ok := ch.After.(*model.Evaluation); ok && e.Status == model.EvalBlocked {
				m.blocked(e.ID)
			}
			if a, ok := ch.After.(*model.Allocation); ok {
				jobs[[2]string{a.Namespace, a.JobID}] = true
				if len(a.Resources.Tasks["t"].Devices) > 0 {
					nodes[a.NodeID] = true
					m.equipped(a.ID)
				}
			}
		}
		for id := range nodes {
			m.note(server, OwnedOnce(snap, id))
		}
		for k := range jobs {
			m.note(server, PlacedOnce(snap, k[0], k[1]))
		}
	})
}

// update compares what an index has done on this server with what it did on others.
func (m *Monitor) update(server string, c state.Commit) {
	lines := make([]string, 0, len(c.Changes))
	for _, ch := range c.Changes {
		lines = append(lines, line(ch.Before)+" => "+line(ch.After))
	}
	slices.Sort(lines) // the order within one entry is no matter
	d := digest{server: server, text: fmt.Sprint(c.Kind, " ", c.Time, " ", lines)}
	h := fnv.New64a()
	_, _ = h.Write([]byte(d.text))
	d.sum = h.Sum64()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.updates++
	old, ok := m.digests[c.Index]
	if !ok {
		m.digests[c.Index] = d
		return
	}
	if old.sum != d.sum && m.err == nil {
		m.err = fmt.Errorf("entry %d did different things:\n  on %s: %s\n  on %s: %s", c.Index, old.server, old.text, server, d.text)
	}
}

// line is what there is to say about an object, without all of its contents.
func line(v any) string {
	switch o := v.(type) {
	case nil:
		return "-"
	case *model.Job:
		return fmt.Sprint("job ", o.Namespace, " ", o.ID, " ", o.Version, " ", o.Status, " ", o.Stop, " ", o.JobModifyIndex, " ", o.ModifyIndex)
	case *model.Allocation:
		return fmt.Sprint("alloc ", o.ID, " ", o.Name, " ", o.NodeID, " ", o.DesiredStatus, " ", o.ClientStatus, " ", o.Job.JobModifyIndex, " ", o.ModifyIndex)
	case *model.Evaluation:
		return fmt.Sprint("eval ", o.ID, " ", o.JobID, " ", o.TriggeredBy, " ", o.Status, " ", o.ModifyIndex)
	case *model.Node:
		return fmt.Sprint("node ", o.ID, " ", o.Status, " ", o.SchedulingEligibility, " ", o.ModifyIndex)
	}
	return fmt.Sprintf("%T", v)
}

func (m *Monitor) note(server string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("on %s: %w", server, err)
	}
}

func (m *Monitor) equipped(alloc string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holders[alloc] = true
}

func (m *Monitor) blocked(eval string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waited[eval] = true
}

// Waited is how many evaluations have found no room.
func (m *Monitor) Waited() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waited)
}

// Holders is how many allocations have had devices.
func (m *Monitor) Holders() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.holders)
}

// Err is the first thing that must not be.
func (m *Monitor) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Updates is how many were looked at.
func (m *Monitor) Updates() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.updates
}

// Settled is all that must hold of a state once nothing is under way any more.
func Settled(s *state.Snapshot, held map[string][]string) error {
	errs := []error{Ended(s), Placed(s), Held(s, held)}
	for j := range s.Jobs(nil, "*", "") {
		errs = append(errs, PlacedOnce(s, j.Namespace, j.ID))
	}
	return errors.Join(errs...)
}
