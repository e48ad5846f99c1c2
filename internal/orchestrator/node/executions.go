package node

import (
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
)

// States of an execution.
const (
	ExecRunning = "running"
	ExecExited  = "exited"
	ExecLost    = "lost" // its end was not seen: its outcome is not known
)

const (
	// keepResults is how long the end of an execution is known.
	keepResults = 60 * time.Second
	// maxResults bounds how many ends are known.
	maxResults = 4096
)

type execKey struct{ alloc, task, id string }

type execRecord struct {
	execution driver.Execution // nil while it is being started
	state     string
	result    driver.ExecResult
	ended     time.Time
}

// executions knows the executions that run, and for a while those that have ended.
type executions struct {
	mu    sync.Mutex
	byKey map[execKey]*execRecord
	ended []execKey // oldest first
}

// reserve takes an id.
func (x *executions) reserve(k execKey, now time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.prune(now)
	if x.byKey == nil {
		x.byKey = map[execKey]*execRecord{}
	}
	if x.byKey[k] != nil {
		return fault.New(fault.Conflict, "execution %q exists already", k.id)
	}
	x.byKey[k] = &execRecord{state: ExecRunning}
	return nil
}

func (x *executions) release(k execKey) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byKey, k)
}

func (x *executions) running(k execKey, e driver.Execution) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.byKey[k].execution = e
}

// end notes the outcome; an error means that there is none.
func (x *executions) end(k execKey, result driver.ExecResult, err error, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := x.byKey[k]
	r.over(result, err)
	r.ended = now
	x.ended = append(x.ended, k)
	x.prune(now)
}

// over takes in how it ended.
func (r *execRecord) over(result driver.ExecResult, err error) {
	r.execution, r.state, r.result = nil, ExecExited, result
	if err != nil {
		r.state, r.result = ExecLost, driver.ExecResult{}
	}
}

func (x *executions) prune(now time.Time) {
	n := 0
	for n < len(x.ended) && (len(x.ended)-n > maxResults || now.Sub(x.byKey[x.ended[n]].ended) > keepResults) {
		delete(x.byKey, x.ended[n])
		n++
	}
	x.ended = x.ended[n:]
}

// get answers what is known of an execution. Who has seen its end may ask before the end is noted, and is told of it all the same.
func (x *executions) get(k execKey, now time.Time) (execRecord, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.prune(now)
	r := x.byKey[k]
	if r == nil {
		return execRecord{}, fault.New(fault.NotFound, "Unknown execution %q", k.id)
	}
	known := *r
	if e := known.execution; e != nil {
		select {
		case <-e.Done():
			known.over(e.Result())
		default:
		}
	}
	return known, nil
}

// all lists the running ones.
func (x *executions) all() []driver.Execution {
	x.mu.Lock()
	defer x.mu.Unlock()
	var running []driver.Execution
	for _, r := range x.byKey {
		if r.execution != nil {
			running = append(running, r.execution)
		}
	}
	return running
}
