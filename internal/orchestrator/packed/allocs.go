package packed

import (
	"reflect"
	"strings"
	"sync"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// Options say what is packed with allocations.
type Options struct {
	Job       func(*model.Job) ([]byte, error) // makes the form in which a specification travels, which is written once; nil = they go without
	NoMetrics bool
}

// Allocs packs allocations.
func Allocs(list []*model.Allocation, o Options) ([]byte, error) { return AppendAllocs(nil, list, o) }

// AppendAllocs is Allocs for who has room for them already.
func AppendAllocs(to []byte, list []*model.Allocation, o Options) ([]byte, error) {
	w := allocWriters.Get().(*allocWriter)
	defer w.release()
	w.noMetrics = o.NoMetrics
	w.b = append(w.b, formatAllocs)
	w.uint(uint64(len(list)))
	jobs := map[*model.Job]uint64{}
	for _, a := range list {
		if o.Job == nil || a.Job == nil {
			w.uint(0)
		} else if n, known := jobs[a.Job]; known {
			w.uint(n)
		} else {
			b, err := o.Job(a.Job)
			if err != nil {
				return to, err
			}
			n = uint64(len(jobs)) + 1
			jobs[a.Job] = n
			w.uint(n)
			w.bytes(b)
		}
		w.alloc(a)
	}
	return append(to, w.b...), w.err
}

// allocWriters are used again: what one grows for a list is most of what a short list costs.
var allocWriters = sync.Pool{New: func() any {
	return &allocWriter{writer: writer{texts: map[string]uint64{}}, scores: map[string]uint64{}}
}}

// release gives a writer back, without what it has written and what it points to.
func (w *allocWriter) release() {
	if cap(w.b) > keptBuffer || len(w.texts) > keptTexts {
		return
	}
	clear(w.texts)
	clear(w.scores)
	*w = allocWriter{writer: writer{b: w.b[:0], texts: w.texts, scratch: w.scratch[:0]}, scores: w.scores, key: w.key[:0]}
	allocWriters.Put(w)
}

type allocWriter struct {
	writer
	noMetrics          bool
	templates, metrics uint64            // written
	template           *model.Allocation // the newest
	metric             *model.AllocMetric
	scores             map[string]uint64
	key                []byte
	names              []string
}

func (w *allocWriter) alloc(a *model.Allocation) {
	if w.template == nil || !alike(w.template, a) {
		w.template = a
		w.templates++
		w.uint(0) // a new one
		w.whole(template(a))
	} else {
		w.uint(w.templates)
	}
	w.id(a.ID)
	w.id(a.NodeID)
	w.text(a.NodeName)
	begin := prefix(w.template.Name, a.Name)
	w.text(a.Name[:begin])
	w.uint(uint64(len(a.Name) - begin))
	w.b = append(w.b, a.Name[begin:]...)
	w.uint(a.CreateIndex)
	w.uint(a.ModifyIndex - a.CreateIndex)
	w.uint(a.AllocModifyIndex - a.CreateIndex)
	w.int(a.CreateTime)
	w.int(a.ModifyTime - a.CreateTime)
	w.measured(a.Metrics)
	if a.TaskStates == nil {
		w.b = append(w.b, 0)
	} else {
		w.b = append(w.b, 1)
		w.states(a.TaskStates, a.ModifyTime)
	}
}

// prefix is how much of a name stands once: up to its number, which follows the bracket.
func prefix(template, name string) int {
	n := strings.LastIndexByte(name, '[') + 1
	if n > 0 && strings.HasPrefix(template, name[:n]) {
		return n
	}
	return 0
}

// template is an allocation without the fields that a row has.
func template(a *model.Allocation) *model.Allocation {
	t := *a
	t.ID, t.NodeID, t.NodeName, t.Name, t.Job, t.Metrics, t.TaskStates = "", "", "", "", nil, nil, nil
	t.CreateIndex, t.ModifyIndex, t.AllocModifyIndex, t.CreateTime, t.ModifyTime = 0, 0, 0, 0, 0
	return &t
}

// alike reports whether two allocations have one template. What cannot be compared cheaply makes them differ.
func alike(a, b *model.Allocation) bool {
	return a.Namespace == b.Namespace && a.EvalID == b.EvalID && a.JobID == b.JobID && a.TaskGroup == b.TaskGroup &&
		a.DesiredStatus == b.DesiredStatus && a.DesiredDescription == b.DesiredDescription && a.ClientStatus == b.ClientStatus &&
		a.ClientDescription == b.ClientDescription && a.PreviousAllocation == b.PreviousAllocation && a.NextAllocation == b.NextAllocation &&
		a.FollowupEvalID == b.FollowupEvalID && a.DeploymentID == b.DeploymentID && a.PreemptedBy == b.PreemptedBy && a.UnknownSince == b.UnknownSince &&
		a.NetworkStatus == b.NetworkStatus && a.DeploymentStatus == b.DeploymentStatus && a.Transition == b.Transition &&
		len(a.Reschedules)+len(b.Reschedules)+len(a.Preempts)+len(b.Preempts) == 0 &&
		a.Resources.DiskMB == b.Resources.DiskMB && len(a.Resources.Ports)+len(b.Resources.Ports) == 0 && same(a.Resources.Tasks, b.Resources.Tasks)
}

// same reports whether two maps are one, or empty both.
func same[V any](a, b map[string]V) bool {
	return len(a) == 0 && len(b) == 0 && (a == nil) == (b == nil) || reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// measured writes how a placement came about. What differs within a group is the scores, and these are few.
func (w *allocWriter) measured(m *model.AllocMetric) {
	if m == nil || w.noMetrics {
		w.uint(0)
		return
	}
	if w.metric == nil || !alikeMetrics(w.metric, m) {
		w.metric = m
		w.metrics++
		w.uint(1) // a new one
		t := *m
		t.ScoreMeta = nil
		w.whole(&t)
	} else {
		w.uint(w.metrics + 1)
	}
	if m.ScoreMeta == nil {
		w.uint(0)
		return
	}
	w.uint(uint64(len(m.ScoreMeta)) + 1)
	for i := range m.ScoreMeta {
		w.score(&m.ScoreMeta[i])
	}
}

func alikeMetrics(a, b *model.AllocMetric) bool {
	return a.NodesEvaluated == b.NodesEvaluated && a.NodesFiltered == b.NodesFiltered && a.NodesExhausted == b.NodesExhausted &&
		same(a.NodesAvailable, b.NodesAvailable) && same(a.ConstraintFiltered, b.ConstraintFiltered) && same(a.ClassFiltered, b.ClassFiltered) &&
		same(a.DimensionExhausted, b.DimensionExhausted) && a.CoalescedFailures == b.CoalescedFailures && a.AllocationTimeNS == b.AllocationTimeNS &&
		same(a.Scores, b.Scores) && len(a.QuotaExhausted)+len(b.QuotaExhausted) == 0 && a.NodesInPool == b.NodesInPool &&
		a.NodePool == b.NodePool
}

// score writes a node's id and its scores, which stand once: as many nodes get the same as were alike.
func (w *allocWriter) score(s *model.NodeScore) {
	w.text(s.NodeID)
	w.names = sortedKeys(w.names[:0], s.Scores)
	key := writer{b: w.key[:0]}
	key.float(s.Norm)
	for _, name := range w.names {
		key.b = append(append(key.b, name...), 0)
		key.float(s.Scores[name])
	}
	if s.Scores == nil {
		key.b = append(key.b, 1)
	}
	w.key = key.b
	if n, known := w.scores[string(w.key)]; known {
		w.uint(n)
		return
	}
	w.scores[string(w.key)] = uint64(len(w.scores)) + 1
	w.uint(0)
	w.float(s.Norm)
	if s.Scores == nil {
		w.uint(0)
		return
	}
	w.uint(uint64(len(w.names)) + 1)
	for _, name := range w.names {
		w.text(name)
		w.float(s.Scores[name])
	}
}

// ReadAllocs unpacks what Allocs packed. job makes a specification of its form; nil = they come without.
func ReadAllocs(b []byte, job func([]byte) (*model.Job, error)) ([]*model.Allocation, error) {
	r := allocReader{reader: reader{b: b}}
	if f := r.byte(); f != formatAllocs {
		return nil, fault.New(fault.Invalid, "packed allocations have format %d, known is %d", f, formatAllocs)
	}
	n := r.count()
	list := make([]*model.Allocation, 0, min(n, mostRoom))
	var jobs []*model.Job
	for range n {
		var of *model.Job
		if n := r.uint(); n > uint64(len(jobs))+1 {
			r.fail("it refers to a specification that it does not have")
		} else if n > uint64(len(jobs)) {
			text := r.bytes(r.count())
			if r.err == nil && job != nil {
				var err error
				if of, err = job(text); err != nil {
					return nil, err
				}
			}
			jobs = append(jobs, of)
		} else if n > 0 {
			of = jobs[n-1]
		}
		a := r.alloc()
		if r.err != nil {
			return nil, r.err
		}
		a.Job = of
		list = append(list, a)
	}
	return list, r.err
}

type allocReader struct {
	reader
	templates []*model.Allocation
	metrics   []*model.AllocMetric
	scores    []model.NodeScore // without a node
	names     []string          // of one node's scores
	floats    []float64
}

func (r *allocReader) alloc() *model.Allocation {
	var t *model.Allocation
	if n := r.uint(); n == 0 {
		t = read(&r.reader, readAlloc)
		r.templates = append(r.templates, t)
	} else if n > uint64(len(r.templates)) {
		r.fail("it refers to a template that it does not have")
		return nil
	} else {
		t = r.templates[n-1]
	}
	a := *t
	a.ID, a.NodeID, a.NodeName = r.id(), r.node(), r.word()
	a.Name = r.text()
	a.Name += string(r.bytes(r.count()))
	a.CreateIndex = r.uint()
	a.ModifyIndex = a.CreateIndex + r.uint()
	a.AllocModifyIndex = a.CreateIndex + r.uint()
	a.CreateTime = r.int()
	a.ModifyTime = a.CreateTime + r.int()
	a.Metrics = r.measured()
	if r.byte() != 0 {
		a.TaskStates = r.states(a.ModifyTime)
	}
	return &a
}

func (r *allocReader) measured() *model.AllocMetric {
	var m model.AllocMetric
	switch n := r.uint(); {
	case n == 0:
		return nil
	case n == 1:
		t := read(&r.reader, readMetric)
		r.metrics = append(r.metrics, t)
		m = *t
	case n-1 > uint64(len(r.metrics)):
		r.fail("it refers to metrics that it does not have")
		return nil
	default:
		m = *r.metrics[n-2]
	}
	whole := new(measuredOnce) // most have one score: one piece of memory
	if n, there := r.some(); there {
		if n <= len(whole.scores) {
			m.ScoreMeta = whole.scores[:n:n]
		} else {
			m.ScoreMeta = make([]model.NodeScore, n)
		}
		for i := range m.ScoreMeta {
			m.ScoreMeta[i] = r.score()
		}
	}
	whole.metric = m
	return &whole.metric
}

type measuredOnce struct {
	metric model.AllocMetric
	scores [1]model.NodeScore
}

func (r *allocReader) score() model.NodeScore {
	node := r.word()
	n := r.uint()
	if n > uint64(len(r.scores)) {
		r.fail("it refers to scores that it does not have")
		return model.NodeScore{}
	}
	if n == 0 {
		s := model.NodeScore{Norm: r.float()}
		if k, there := r.some(); there {
			r.names, r.floats = r.names[:0], r.floats[:0]
			for i := 0; i < k && r.err == nil; i++ {
				r.names, r.floats = append(r.names, r.text()), append(r.floats, r.float())
			}
			if r.err == nil {
				s.Scores = scoresOf(r.names, r.floats)
			}
		}
		r.scores = append(r.scores, s)
		n = uint64(len(r.scores))
	}
	s := r.scores[n-1]
	s.NodeID = node
	return s
}
