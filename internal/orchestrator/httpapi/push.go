package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"sync"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
)

// pushes wakes the streams of nodes that an update concerns. A stream finds out what is new by reading the state, so all it needs is to be told once.
//
// It stands in for watching the state's trees, which costs each of ten thousand idle streams a set of channels, and each update the closing of those on
// the way to what it changed, most of which belong to other nodes.
type pushes struct {
	mu      sync.Mutex
	streams map[string][]chan struct{} // guarded by mu; by node, each of 1
	all     bool                       // guarded by mu; the next update concerns each of them
}

func newPushes() *pushes { return &pushes{streams: map[string][]chan struct{}{}} }

// watch returns a channel that holds a value when there may be something new for a node.
func (p *pushes) watch(node string) (wake <-chan struct{}, end func()) {
	ch := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams[node] = append(p.streams[node], ch)
	return ch, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		var left []chan struct{}
		for _, c := range p.streams[node] {
			if c != ch {
				left = append(left, c)
			}
		}
		if p.streams[node] = left; len(left) == 0 {
			delete(p.streams, node)
		}
	}
}

// observe runs on the goroutine that applies the log.
func (p *pushes) observe(c state.Commit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all {
		p.all = false
		for _, streams := range p.streams {
			wake(streams)
		}
		return
	}
	for _, ch := range c.Changes {
		a, ok := ch.After.(*model.Allocation)
		if ok && a.AllocModifyIndex != c.Index {
			continue // only its node has changed it
		}
		if !ok {
			if a, ok = ch.Before.(*model.Allocation); !ok {
				continue
			}
		}
		wake(p.streams[a.NodeID])
	}
}

func wake(streams []chan struct{}) {
	for _, s := range streams {
		select {
		case s <- struct{}{}:
		default:
		}
	}
}

// restored has each stream look at the state after the next update: only that has an index beyond all that nodes were told before the restore.
func (p *pushes) restored() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = true
}

// specs keeps one encoded form of specifications that were sent lately: a job of a thousand allocations is encoded once, not for each node anew.
type specs struct {
	form func(*model.Job) ([]byte, error)

	mu    sync.Mutex
	lines map[*model.Job][]byte // guarded by mu
	order []*model.Job          // guarded by mu; oldest first
	bytes int                   // guarded by mu
}

const (
	keptSpecs     = 512
	keptSpecBytes = 8 << 20
)

func newSpecs(form func(*model.Job) ([]byte, error)) *specs {
	return &specs{form: form, lines: map[*model.Job][]byte{}}
}

func inJSON(j *model.Job) ([]byte, error) { return json.Marshal(j) }

// encode makes the form of a specification, which is never changed.
func (s *specs) encode(j *model.Job) ([]byte, error) {
	s.mu.Lock()
	line, ok := s.lines[j]
	s.mu.Unlock()
	if ok {
		return line, nil
	}
	line, err := s.form(j)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.lines[j]; !ok {
		s.lines[j] = line
		s.order = append(s.order, j)
		s.bytes += len(line)
	}
	for len(s.order) > 1 && (len(s.order) > keptSpecs || s.bytes > keptSpecBytes) {
		s.bytes -= len(s.lines[s.order[0]])
		delete(s.lines, s.order[0])
		s.order[0] = nil
		s.order = s.order[1:]
	}
	return line, nil
}

// pushed is a model.AllocPush on the wire, for nodes that have not asked for the packed form.
type pushed struct {
	Generation uint64
	Full       bool
	Allocs     []pushedAlloc
	Purged     []string
}

// pushedAlloc is a model.Allocation whose job is encoded already.
type pushedAlloc struct {
	*model.Allocation
	Job json.RawMessage
}

// push writes a message.
func (a *API) push(w *jsonWriter, msg *model.AllocPush, dense bool) (err error) {
	if dense {
		w.dense, err = packed.AppendAllocs(w.dense[:0], msg.Allocs, packed.Options{NoMetrics: true, Job: a.denseSpecs.encode})
		if err != nil {
			return err
		}
		err = w.add(model.PackedPush{Generation: msg.Generation, Full: msg.Full, Packed: w.dense, Purged: msg.Purged})
		if cap(w.dense) > streamPiece { // a node may take its time to read what was made of it
			w.dense = nil
		}
		return err
	}
	out := pushed{msg.Generation, msg.Full, make([]pushedAlloc, len(msg.Allocs)), msg.Purged}
	for i, al := range msg.Allocs {
		job, err := a.specs.encode(al.Job)
		if err != nil {
			return err
		}
		out.Allocs[i] = pushedAlloc{al, job}
	}
	return w.add(out)
}

// reports is the body of a report: a list in JSON, or a text with its packed form in base64.
type reports []*model.AllocUpdate

func (r *reports) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '"' {
		return json.Unmarshal(b, (*[]*model.AllocUpdate)(r))
	}
	dense, err := base64.StdEncoding.AppendDecode(nil, bytes.Trim(b, `"`))
	if err == nil {
		*r, err = packed.ReadReports(dense)
	}
	return err
}

// pushSince is what a node must know that has the state at index since; 0 = everything.
func pushSince(s *state.Snapshot, nodeID string, since uint64) *model.AllocPush {
	msg := &model.AllocPush{Generation: max(s.Index(), 1), Full: since == 0, Allocs: []*model.Allocation{}}
	for al := range s.AllocsByNodeSince(nodeID, since) {
		msg.Allocs = append(msg.Allocs, al)
	}
	if msg.Full {
		return msg
	}
	for t := range s.Tombstones(nil, nodeID) {
		if t.Index > since {
			msg.Purged = append(msg.Purged, t.AllocID)
		}
	}
	return msg
}
