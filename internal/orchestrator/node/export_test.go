package node

import "rockpool/internal/orchestrator/model"

// Recorded is an allocation as the agent's state has it; nil = it does not.
func (a *Agent) Recorded(id string) *model.Allocation {
	s, _ := a.db.get(id)
	return s.alloc
}

// LoseState makes every write to the agent's state fail until the returned function was called.
func (a *Agent) LoseState() (found func()) {
	swap := func(f func()) {
		a.db.mu.Lock()
		defer a.db.mu.Unlock()
		f()
	}
	file := a.db.file
	swap(func() { a.db.file = nil })
	return func() { swap(func() { a.db.file = file }) }
}

// Runners is of how many allocations the agent has more than what is left of one that was retired.
func (a *Agent) Runners() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.runners)
}
