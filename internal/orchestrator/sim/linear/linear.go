// Package linear checks histories of jobs for linearizability: compare-and-set by EnforceIndex, reads and purges, by many clients, some of which never
// learned what became of their call.
//
// The checker is porcupine (A. Athalye, "Faster linearizability checking via P-compositionality" by Horn and Kroening is its algorithm). A claim of a runner
// is such a compare-and-set, so histories of claims are checked by the same model. Each write carries a value that no other write has.
package linear

import (
	"fmt"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what a client asked for.
type Kind string

// Kinds of operations.
const (
	CAS   Kind = "cas"   // write Value if the job's index is Expect; 0 = if there is no such job
	Read  Kind = "read"  // of the newest state, not a stale one
	Purge Kind = "purge" // whatever its index
)

// Outcome is what became of an operation.
type Outcome string

// Outcomes. Unknown is for a call whose answer was lost: it may have taken effect, at any later time, or not at all. Never is for one that surely had none,
// such as one that reached nobody.
const (
	Done     Outcome = "done"
	Conflict Outcome = "conflict" // of a CAS only
	Unknown  Outcome = "unknown"
	Never    Outcome = "never"
)

// Op is one operation on one job.
type Op struct {
	Kind   Kind
	Job    string
	Expect uint64 // of a CAS
	Value  string // of a CAS: unique in the history
}

// Result is what the client saw.
type Result struct {
	Outcome Outcome
	Index   uint64 // of a CAS that is done: the job's new one; of a read: the job's, 0 = there is none
	Value   string // of a read
}

// History collects operations. Its methods may be called from many goroutines.
type History struct {
	start time.Time

	mu   sync.Mutex
	last int64                 // guarded by mu
	ops  []porcupine.Operation // guarded by mu
}

// NewHistory makes an empty one.
func NewHistory() *History { return &History{start: time.Now()} }

// Do records one operation: f carries it out and tells what was seen.
func (h *History) Do(client int, op Op, f func() Result) Result {
	h.mu.Lock()
	call := h.tick()
	h.mu.Unlock()
	r := f()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: r, Return: h.tick()})
	return r
}

// tick is the time, later than every one before: the clock of a simulation stands still while things happen one after the other. It is called with mu held.
func (h *History) tick() int64 {
	h.last = max(h.last+1, int64(time.Since(h.start)))
	return h.last
}

// Len is how many operations were recorded.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

// Check returns an error that names a job whose history no order of its operations explains. One that could not be decided within the time is an error too.
func (h *History) Check(within time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := max(h.last, int64(time.Since(h.start))) + 1
	ops := make([]porcupine.Operation, 0, len(h.ops))
	for _, o := range h.ops {
		r := o.Output.(Result)
		if r.Outcome == Never {
			continue
		}
		if r.Outcome == Unknown {
			if o.Input.(Op).Kind == Read {
				continue // it says nothing
			}
			o.Return = end
		}
		ops = append(ops, o)
	}
	deadline := time.Now().Add(within)
	byJob, jobs := partition(ops)
	for _, job := range jobs {
		switch porcupine.CheckOperationsTimeout(model(), byJob[job], max(time.Until(deadline), time.Millisecond)) {
		case porcupine.Ok:
		case porcupine.Illegal:
			return fmt.Errorf("the history of job %s is not linearizable:\n%s", job, describe(byJob[job]))
		default:
			return fmt.Errorf("the history of job %s (%d operations) could not be checked in time", job, len(byJob[job]))
		}
	}
	return nil
}

func partition(ops []porcupine.Operation) (map[string][]porcupine.Operation, []string) {
	byJob := map[string][]porcupine.Operation{}
	var jobs []string
	for _, o := range ops {
		job := o.Input.(Op).Job
		if byJob[job] == nil {
			jobs = append(jobs, job)
		}
		byJob[job] = append(byJob[job], o)
	}
	return byJob, jobs
}

func describe(ops []porcupine.Operation) string {
	out := ""
	for _, o := range ops {
		out += fmt.Sprintf("  %8.3f..%8.3f ms client %d: %+v -> %+v\n", float64(o.Call)/1e6, float64(o.Return)/1e6, o.ClientId, o.Input, o.Output)
	}
	return out
}

// state is what a job is.
type state struct {
	exists bool
	value  string
	index  uint64 // 0 of a job that exists: nobody has seen it yet
}

func model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{state{}} },
		Step: func(s, in, out any) []any { return step(s.(state), in.(Op), out.(Result)) },
	}
	return m.ToModel()
}

// step returns the states that an operation may leave behind; none where what was seen cannot be.
func step(s state, op Op, r Result) []any {
	switch op.Kind {
	case Read:
		switch {
		case r.Index == 0 && !s.exists:
			return []any{s}
		case r.Index != 0 && s.exists && r.Value == s.value && (s.index == 0 || s.index == r.Index):
			s.index = r.Index
			return []any{s}
		}
	case Purge:
		if r.Outcome == Unknown {
			return []any{s, state{}}
		}
		return []any{state{}}
	case CAS:
		// An index that nobody has seen is not the one that is expected: clients learn indexes from what they see.
		holds := !s.exists && op.Expect == 0 || s.exists && s.index == op.Expect && op.Expect != 0
		after := state{exists: true, value: op.Value, index: r.Index}
		switch {
		case r.Outcome == Unknown && holds:
			return []any{s, after}
		case r.Outcome == Unknown, r.Outcome == Conflict && !holds:
			return []any{s}
		case r.Outcome == Done && holds:
			return []any{after}
		}
	}
	return nil
}
