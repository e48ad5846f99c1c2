package node

import (
	"context"
	"sync"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

// registrar tells the servers what allocations offer: the latest of each, tried until it is through.
type registrar struct {
	servers ServiceConn
	log     logging.Logger
	wake    chan struct{} // level trigger

	mu    sync.Mutex
	known map[string]model.AllocServices // all that is offered, to be told again to servers that have lost it
	dirty map[string]model.AllocServices
}

func newRegistrar(servers ServiceConn, log logging.Logger) *registrar {
	return &registrar{servers: servers, log: log, wake: make(chan struct{}, 1), known: map[string]model.AllocServices{}, dirty: map[string]model.AllocServices{}}
}

// put replaces what is offered by an allocation.
func (r *registrar) put(s model.AllocServices) {
	r.mu.Lock()
	if len(s.Services) == 0 {
		delete(r.known, s.AllocID)
	} else {
		r.known[s.AllocID] = s
	}
	r.dirty[s.AllocID] = s
	r.mu.Unlock()
	r.trigger()
}

// again tells everything once more.
func (r *registrar) again() {
	r.mu.Lock()
	for id, s := range r.known {
		r.dirty[id] = s
	}
	r.mu.Unlock()
	r.trigger()
}

func (r *registrar) trigger() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run sends until ctx ends. A failure is logged once, until it has worked again.
func (r *registrar) run(ctx context.Context) {
	var pause backoff
	told := false
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		for {
			r.mu.Lock()
			batch := make([]model.AllocServices, 0, len(r.dirty))
			for _, s := range r.dirty {
				batch = append(batch, s)
			}
			clear(r.dirty)
			r.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			attempt, cancel := context.WithTimeout(ctx, reportTimeout)
			err := r.servers.UpdateServices(attempt, batch)
			cancel()
			if err == nil {
				pause.reset()
				told = false
				continue
			}
			r.mu.Lock()
			for _, s := range batch {
				if _, newer := r.dirty[s.AllocID]; !newer {
					r.dirty[s.AllocID] = s
				}
			}
			r.mu.Unlock()
			if !told && ctx.Err() == nil {
				told = true
				r.log.WithError(err).Warn("services could not be registered, it will be tried again")
			}
			if !pause.wait(ctx) {
				return
			}
		}
	}
}
