package nomad

import (
	"sync"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
)

// TemplateFeed is told what other gateways make of the environments. Its methods return at once.
type TemplateFeed interface {
	// Seen is told a definition; again = it replaces one that was told or made here.
	Seen(e environment.Environment, again bool)
	Gone(id environment.ID)
}

// definitions passes the changes of template jobs on, in their order, each once, and none that this gateway makes itself.
type definitions struct {
	feed TemplateFeed // nil = nobody wants to know

	mu   sync.Mutex
	at   map[environment.ID]uint64 // the latest change that was told, or made here, of environments that are there
	past uint64                    // what is older was heard of, also of those that are gone
	busy map[environment.ID]int    // changes of our own that are under way
	late map[environment.ID]func() // the last one that came meanwhile
}

func (d *definitions) init() {
	d.at, d.busy, d.late = map[environment.ID]uint64{}, map[environment.ID]int{}, map[environment.ID]func(){}
}

// change begins a change of our own; the function it returns is told its index, or 0 when it was not registered.
func (d *definitions) change(id environment.ID) (done func(index uint64)) {
	if d.feed == nil {
		return func(uint64) {}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy[id]++
	return func(index uint64) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if index > 0 {
			d.at[id] = max(d.at[id], index)
		}
		if d.busy[id]--; d.busy[id] > 0 {
			return
		}
		delete(d.busy, id)
		late := d.late[id]
		delete(d.late, id)
		if late != nil {
			late()
		}
	}
}

// event takes in one change of a template job.
func (d *definitions) event(id environment.ID, ev *event) error {
	if removes(ev.kind) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if ev.index >= d.past {
			d.tell(id, ev.index, nil)
		}
		return nil
	}
	p, err := ev.payload()
	if err != nil {
		return err
	}
	if p.Job == nil || p.Job.JobModifyIndex == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if *p.Job.JobModifyIndex >= d.past {
		d.tell(id, *p.Job.JobModifyIndex, p.Job)
	}
	return nil
}

// tell passes a change on, or keeps it while one of our own is under way; job = nil: it is no more. The lock is held.
func (d *definitions) tell(id environment.ID, index uint64, job *api.Job) {
	pass := func() {
		if index <= d.at[id] {
			return
		}
		_, again := d.at[id]
		if job == nil || (job.Stop != nil && *job.Stop) {
			d.past = max(d.past, index) // the events come in their order
			delete(d.at, id)
			if again {
				d.feed.Gone(id)
			}
			return
		}
		d.at[id] = index
		d.feed.Seen(settingsOf(job, id), again)
	}
	if d.busy[id] > 0 {
		d.late[id] = pass
		return
	}
	pass()
}

// all takes in a full listing.
func (d *definitions) all(templates map[string]*api.Job, index uint64) {
	if d.feed == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	there := map[environment.ID]bool{}
	for name, job := range templates {
		if id, ok := templateEnvironment(name); ok && job != nil && job.JobModifyIndex != nil {
			there[id] = true
			d.tell(id, *job.JobModifyIndex, job)
		}
	}
	for id, at := range d.at {
		if !there[id] && at < index {
			d.tell(id, index, nil)
		}
	}
	d.past = max(d.past, index)
}
