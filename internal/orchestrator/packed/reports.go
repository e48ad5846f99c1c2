package packed

import (
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// What a report has besides what every one has.
const (
	isBuried = 1 << iota
	hasNetwork
	hasHealth
	hasStates
)

// Reports packs what a node reports of its allocations.
func Reports(list []*model.AllocUpdate) ([]byte, error) {
	w := writer{texts: map[string]uint64{}, b: make([]byte, 0, 256+96*len(list))}
	w.b = append(w.b, formatReports)
	w.uint(uint64(len(list)))
	for _, u := range list {
		var flags byte
		if u.Buried {
			flags |= isBuried
		}
		if u.NetworkStatus != nil {
			flags |= hasNetwork
		}
		if u.Health != nil {
			flags |= hasHealth
		}
		if u.TaskStates != nil {
			flags |= hasStates
		}
		w.b = append(w.b, flags)
		w.id(u.ID)
		w.text(u.ClientStatus)
		w.text(u.ClientDescription)
		w.int(u.ModifyTime)
		if u.NetworkStatus != nil {
			w.whole(u.NetworkStatus)
		}
		if u.Health != nil {
			w.whole(u.Health)
		}
		if u.TaskStates != nil {
			w.states(u.TaskStates, u.ModifyTime)
		}
	}
	return w.b, w.err
}

// What a task's state has.
const (
	isThere = 1 << iota
	isFailed
	hasEvents
)

func (w *writer) states(states map[string]*model.TaskState, base int64) {
	w.uint(uint64(len(states)))
	w.tasks = sortedKeys(w.tasks[:0], states)
	for _, name := range w.tasks {
		w.text(name)
		s := states[name]
		if s == nil {
			w.b = append(w.b, 0)
			continue
		}
		flags := byte(isThere)
		if s.Failed {
			flags |= isFailed
		}
		if s.Events != nil {
			flags |= hasEvents
		}
		w.b = append(w.b, flags)
		w.text(s.State)
		w.uint(s.Restarts)
		w.time(s.LastRestart, base)
		w.time(s.StartedAt, base)
		w.time(s.FinishedAt, base)
		if s.Events == nil {
			continue
		}
		w.uint(uint64(len(s.Events)))
		for _, e := range s.Events {
			w.event(e, base)
		}
	}
}

func (w *writer) event(e *model.TaskEvent, base int64) {
	if e == nil {
		w.b = append(w.b, 0)
		return
	}
	w.b = append(w.b, 1)
	w.text(e.Type)
	w.time(e.Time, base)
	w.text(e.DisplayMessage)
	if e.Details == nil {
		w.uint(0)
		return
	}
	w.uint(uint64(len(e.Details)) + 1)
	w.details = sortedKeys(w.details[:0], e.Details)
	for _, k := range w.details {
		w.text(k)
		w.text(e.Details[k])
	}
}

// time writes a time relative to another, 0 as one byte.
func (w *writer) time(t, base int64) {
	if t == 0 {
		w.b = append(w.b, 0)
		return
	}
	w.b = append(w.b, 1)
	w.int(t - base)
}

func (r *reader) time(base int64) int64 {
	if r.byte() == 0 {
		return 0
	}
	return r.int() + base
}

// ReadReports unpacks what Reports packed.
func ReadReports(b []byte) ([]*model.AllocUpdate, error) {
	r := reader{b: b}
	if f := r.byte(); f != formatReports {
		return nil, fault.New(fault.Invalid, "packed reports have format %d, known is %d", f, formatReports)
	}
	n := r.count()
	list := make([]*model.AllocUpdate, 0, min(n, mostRoom))
	for range n {
		flags := r.byte()
		u := &model.AllocUpdate{
			Buried: flags&isBuried != 0, ID: r.id(), ClientStatus: r.word(), ClientDescription: r.word(), ModifyTime: r.int(),
		}
		if flags&hasNetwork != 0 {
			u.NetworkStatus = new(model.NetworkStatus)
			r.whole(u.NetworkStatus)
		}
		if flags&hasHealth != 0 {
			u.Health = new(model.AllocHealth)
			r.whole(u.Health)
		}
		if flags&hasStates != 0 {
			u.TaskStates = r.states(u.ModifyTime)
		}
		if r.err != nil {
			return nil, r.err
		}
		list = append(list, u)
	}
	return list, r.err
}

func (r *reader) states(base int64) map[string]*model.TaskState {
	n := r.count()
	states := make(map[string]*model.TaskState, min(n, mostRoom))
	for range n {
		if r.err != nil {
			break
		}
		name := r.word()
		flags := r.byte()
		if flags&isThere == 0 {
			states[name] = nil
			continue
		}
		head := model.TaskState{
			Failed: flags&isFailed != 0, State: r.word(), Restarts: r.uint(), LastRestart: r.time(base), StartedAt: r.time(base), FinishedAt: r.time(base),
		}
		events := 0
		if flags&hasEvents != 0 {
			events = r.count()
		}
		var s *model.TaskState
		var room []model.TaskEvent // few at a time: there may be said to be more than there are
		if events > 1 && events <= fewEvents && len(r.b) > events*leastEvent && r.b[0] != 0 {
			whole := new(stateOfFew)
			s, room, head.Events = &whole.state, whole.events[:], whole.list[:events:events]
		} else {
			s = new(model.TaskState)
			if flags&hasEvents != 0 {
				head.Events = make([]*model.TaskEvent, events)
			}
		}
		*s = head
		for i := range s.Events {
			if len(room) == 0 {
				room = make([]model.TaskEvent, min(len(s.Events)-i, fewEvents))
			}
			if s.Events[i] = r.event(&room[0], base); s.Events[i] != nil {
				room = room[1:]
			}
		}
		states[name] = s
	}
	return states
}

// fewEvents are as many as the task of an ordinary job has in its whole life. A state with so few is one piece of memory: very many live at a time.
const fewEvents = 4

// leastEvent is how many bytes an event has at least. Who says that there are events and sends none gets no room for them.
const leastEvent = 5

type stateOfFew struct {
	state  model.TaskState
	list   [fewEvents]*model.TaskEvent
	events [fewEvents]model.TaskEvent
}

// event reads an event to e, or returns nil where there is none.
func (r *reader) event(e *model.TaskEvent, base int64) *model.TaskEvent {
	if r.byte() == 0 {
		return nil
	}
	*e = model.TaskEvent{Type: r.word(), Time: r.time(base), DisplayMessage: r.word()}
	if n, there := r.some(); there {
		r.pairs = r.pairs[:0]
		for i := 0; i < 2*n && r.err == nil; i++ {
			r.pairs = append(r.pairs, r.text())
		}
		if r.err == nil {
			e.Details = Details(r.pairs...)
		}
	}
	return e
}
