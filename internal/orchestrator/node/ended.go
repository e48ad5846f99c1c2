package node

import (
	"context"
	"slices"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// ended is what is kept in memory of an allocation of which nothing runs and nothing ever will: it stays until the servers have forgotten it, and there may be very many. What else is
// known of it is on disk.
type ended struct {
	status      string // of the client, as it was reported
	at          int64  // unix ns at which its last task ended
	description string
	network     *model.NetworkStatus
	health      *model.AllocHealth
	collected   bool // its logs and files were removed
	going       bool // the servers have forgotten it, and so will the node
}

// retire puts an allocation that has ended out of memory. It stays if it is to vanish, if what is known of it is not on disk whole, or if something of it is left that only the runner knows.
func (a *Agent) retire(r *allocRunner) bool {
	r.saving.Lock() // first: nobody waits for the agent's lock until a file was written
	defer r.saving.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.purge.isSet() || !r.written.alloc || !r.written.tasks || len(r.debris) > 0 {
		return false
	}
	r.retired = true
	a.ended[r.id] = ended{status: r.reported.ClientStatus, at: r.lastEnd(), description: r.description, network: r.networkStatus, health: r.health, collected: r.collected}
	delete(a.runners, r.id)
	return true
}

// image is the runner of an allocation that was retired, made anew from what is on disk. It is there to be asked and to report, and never runs.
func (a *Agent) image(id string, e ended) (*allocRunner, error) {
	s, err := a.db.get(id)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "what is kept of allocation %s cannot be read", id)
	}
	r := newAllocRunner(a, s.alloc, s.tasks)
	r.description, r.networkStatus, r.health = e.description, e.network, e.health
	close(r.quiet)
	return r, nil
}

// repeat reports allocations that were retired once more.
func (a *Agent) repeat(life context.Context, allocs []*model.Allocation) {
	for _, alloc := range allocs {
		if life.Err() != nil {
			return
		}
		a.mu.Lock()
		e := a.ended[alloc.ID]
		a.mu.Unlock()
		r, err := a.image(alloc.ID, e)
		a.mu.Lock()
		switch e, ok := a.ended[alloc.ID]; {
		case !ok || e.going: // and nobody is left to be told
		case err == nil:
			r.report(true)
		default:
			a.log.WithError(err).WithField("alloc_id", alloc.ID).Error("the servers count on an allocation that has ended, and cannot be told how its tasks did")
			a.reporter.put(model.AllocUpdate{ID: alloc.ID, ClientStatus: e.status, ClientDescription: "It has ended, and the node cannot read its record of how",
				TaskStates: alloc.TaskStates, NetworkStatus: e.network, Health: e.health, ModifyTime: time.Now().UnixNano()}, true)
		}
		a.mu.Unlock()
	}
}

// forgotten begins to remove what is left of retired allocations that the servers have forgotten. The caller holds a.mu.
func (a *Agent) forgotten(life context.Context, ids []string) {
	ids = slices.DeleteFunc(ids, func(id string) bool {
		e, ok := a.ended[id]
		if !ok || e.going {
			return true
		}
		e.going = true
		a.ended[id] = e
		a.reporter.forget(id)
		return false
	})
	if len(ids) == 0 {
		return
	}
	a.allocs.Go(func() {
		var pause backoff
		for {
			ids = slices.DeleteFunc(ids, func(id string) bool { return life.Err() == nil && a.vanish(id) })
			if len(ids) == 0 || !pause.wait(life) {
				return // the next start goes on
			}
		}
	})
}

// vanish removes what is on disk of an allocation, and tells the servers, who remember it until then. It reports whether that worked.
func (a *Agent) vanish(id string) bool {
	log := a.log.WithField("alloc_id", id)
	if err := a.db.remove(id); err != nil {
		log.WithError(err).Error("allocation could not be destroyed, it will be tried again")
		return false
	}
	a.mu.Lock()
	delete(a.runners, id)
	delete(a.ended, id)
	a.mu.Unlock()
	a.reporter.put(model.AllocUpdate{ID: id, Buried: true}, false)
	log.Debug("allocation destroyed")
	return true
}
