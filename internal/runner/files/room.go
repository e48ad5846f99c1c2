package files

import (
	"sync"

	"rockpool/internal/fault"
)

// Room bounds what all uploads that are under way keep together. A nil Room has no bounds.
type Room struct {
	maxMemory, maxDisk int64

	mu           sync.Mutex
	memory, disk int64
}

// NewRoom bounds memory and temporary files, in bytes; 0 = no bound.
func NewRoom(memory, disk int64) *Room { return &Room{maxMemory: memory, maxDisk: disk} }

// Used is how much is kept, in bytes.
func (r *Room) Used() (memory, disk int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.memory, r.disk
}

// take is all or nothing. Its error is of the kind Exhausted.
func (r *Room) take(memory, disk int64) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if memory > 0 && r.maxMemory > 0 && r.memory+memory > r.maxMemory || disk > 0 && r.maxDisk > 0 && r.disk+disk > r.maxDisk {
		return fault.New(fault.Exhausted, "the uploads that are under way take all the room there is for them: send this one again in a moment")
	}
	r.memory += memory
	r.disk += disk
	return nil
}

func (r *Room) give(memory, disk int64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.memory -= memory
	r.disk -= disk
}
