// Package plan applies plans: it checks each against the newest state and against what was accepted beside it, and commits all
// that are waiting in one log entry. A plan may come with the registration of its job, which then is in that entry too.
//
// Invariant: what was accepted fits. Workers plan on snapshots and may plan the same room twice; the one goroutine of the
// [Applier] decides, and what it refuses is planned again on a state that is new enough.
package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/timeline"
)

// Log brings an entry onto the log; see consensus.
type Log interface {
	Apply(ctx context.Context, entry any) (result any, index uint64, err error)
	Barrier(ctx context.Context) error
}

// Result is what became of a plan.
type Result struct {
	state.Placed
	Index   uint64 // at which it was applied
	Partial bool   // something was refused: plan again on a state of at least Index
}

// Registration is that of a job which is placed in the same entry.
type Registration struct {
	Entry     []byte // a command.JobRegister, see Encode
	Namespace string
	JobID     string
}

type submission struct {
	plan     *state.Placement
	register *Registration       // nil = the job is there
	evicted  []*model.Evaluation // of jobs that lose something to the plan
	answer   chan<- answer       // of 1
	span     *timeline.Span      // of whoever waits; nil = it is not recorded
	handed   time.Time           // when it was handed in; only with a span
}

type answer struct {
	result     Result
	registered any // what the registration came to; an error = it was refused
	err        error
}

const (
	maxBatch   = 128              // plans in one entry
	maxPlaced  = 4096             // placements in one entry, unless a single plan has more: what else waits for the log waits that long
	applyBound = 10 * time.Second // of one entry, or of the wait for those before
)

// Applier is the one place where plans become state.
type Applier struct {
	store *state.Store
	log   Log
	queue chan submission
	ended chan struct{} // closed when Run has returned
	// unsure says that the last entry failed, and may be applied nevertheless. Only Run's goroutine knows.
	unsure bool
	// Encode makes the form on the log of an entry that becomes part of a command.Batch; an error = a server does not know it. Without it nothing may be registered.
	Encode func(entry any) ([]byte, error)
	// Measure is told how long the steps took. nil = nobody is.
	Measure func(name string, start time.Time)
}

func (a *Applier) measure(name string, start time.Time) {
	if a.Measure != nil {
		a.Measure(name, start)
	}
}

// Waiting is how many plans wait to be looked at.
func (a *Applier) Waiting() int { return len(a.queue) }

// New makes an applier.
func New(s *state.Store, l Log) *Applier {
	return &Applier{store: s, log: l, queue: make(chan submission, maxBatch), ended: make(chan struct{})}
}

func submitted(ctx context.Context, p *state.Placement, r *Registration, ch chan<- answer) submission {
	s := submission{plan: p, register: r, answer: ch, span: timeline.From(ctx)}
	if s.span != nil {
		s.handed = time.Now()
	}
	return s
}

// Submit hands in a plan and waits for its result. The plan is the applier's from here on. evicted are evaluations of the jobs that lose allocations to it: if
// anything is evicted, they are created in the same entry, as whoever leads next would know of none. After an error the outcome is not known.
func (a *Applier) Submit(ctx context.Context, p *state.Placement, evicted ...*model.Evaluation) (Result, error) {
	ch := make(chan answer, 1)
	s := submitted(ctx, p, nil, ch)
	s.evicted = evicted
	select {
	case a.queue <- s:
	case <-a.ended:
		return Result{}, errEnded()
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
	r := a.await(ctx, ch)
	return r.result, r.err
}

// Register registers a job and places it in one entry: all that the plan places, or nothing, if a part does not fit or the job was there before. The result is
// what the registration alone would have come to. Not taken = so many plans wait that nothing was done: the job is better registered alone.
func (a *Applier) Register(ctx context.Context, r *Registration, p *state.Placement) (result any, index uint64, taken bool, err error) {
	ch := make(chan answer, 1)
	select {
	case a.queue <- submitted(ctx, p, r, ch):
	default:
		return nil, 0, false, nil
	}
	done := a.await(ctx, ch)
	if done.err != nil {
		return nil, 0, true, done.err
	}
	if refused, _ := done.registered.(error); refused != nil {
		return nil, done.result.Index, true, refused
	}
	return done.registered, done.result.Index, true, nil
}

func (a *Applier) await(ctx context.Context, ch <-chan answer) answer {
	select {
	case r := <-ch:
		return r
	case <-a.ended:
		select { // it may have been answered last of all
		case r := <-ch:
			return r
		default:
			return answer{err: errEnded()}
		}
	case <-ctx.Done():
		return answer{err: context.Cause(ctx)}
	}
}

func errEnded() error { return fault.New(fault.Unavailable, "No cluster leader") }

// Run applies until ctx ends. What waits then is refused.
func (a *Applier) Run(ctx context.Context) error {
	defer close(a.ended)
	var kept *submission // that could not be in the last entry
	for {
		var batch []submission
		if kept != nil {
			batch, kept = append(batch, *kept), nil
		} else {
			select {
			case s := <-a.queue:
				batch = append(batch, s)
			case <-ctx.Done():
				return nil
			}
		}
		batch, kept = a.gather(batch)
		a.apply(ctx, batch)
	}
}

// gather takes what waits, until the entry is full or the next registration is of a job that is in it already: two versions of one job in one entry could not be
// told apart by their index.
func (a *Applier) gather(batch []submission) (_ []submission, kept *submission) {
	jobs := map[[2]string]bool{}
	if r := batch[0].register; r != nil {
		jobs[[2]string{r.Namespace, r.JobID}] = true
	}
	for placed := len(batch[0].plan.Place); len(batch) < maxBatch && placed < maxPlaced; {
		select {
		case s := <-a.queue:
			if r := s.register; r != nil {
				k := [2]string{r.Namespace, r.JobID}
				if jobs[k] {
					return batch, &s
				}
				jobs[k] = true
			}
			batch = append(batch, s)
			placed += len(s.plan.Place)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

func (a *Applier) apply(ctx context.Context, batch []submission) {
	if err := a.settle(ctx); err != nil {
		for _, s := range batch {
			s.answer <- answer{err: fmt.Errorf("find out what became of the plans before: %w", fault.Wrap(fault.Unavailable, err, "No cluster leader"))}
		}
		return
	}
	start := time.Now()
	check := newCheck(a.store.Snapshot())
	partial := make([]bool, len(batch))
	for i, s := range batch {
		partial[i] = check.admit(s.plan, s.register != nil)
		if !slices.ContainsFunc(s.plan.Stop, func(s state.Stop) bool { return s.PreemptedBy != "" }) {
			batch[i].evicted = nil
		}
	}
	a.measure("nomad.nomad.plan.evaluate", start)
	bound, cancel := context.WithTimeout(ctx, applyBound)
	defer cancel()
	start = time.Now()
	bound, shared := recorded(bound, batch, start)
	answers, index, err := a.commit(bound, batch)
	a.unsure = err != nil
	for _, s := range shared {
		s.End()
	}
	if err != nil && ctx.Err() != nil { // the end of a leadership: the outcome is not known here
		err = fault.Wrap(fault.Unavailable, err, "No cluster leader")
	}
	a.measure("nomad.nomad.plan.apply", start)
	for i, s := range batch {
		if err != nil {
			s.answer <- answer{err: fmt.Errorf("apply the plan: %w", err)}
			continue
		}
		answers[i].result.Index = index
		answers[i].result.Partial = partial[i] || answers[i].result.Refused
		s.answer <- answers[i]
	}
}

// settle waits until an entry of unknown outcome is in the state, or never will be: what is checked next would get the room that it may have taken.
func (a *Applier) settle(ctx context.Context) error {
	if a.unsure {
		bound, cancel := context.WithTimeout(ctx, applyBound)
		defer cancel()
		if err := a.log.Barrier(bound); err != nil {
			return err
		}
		a.unsure = false
	}
	return nil
}

// recorded tells who waits how long it took until now. The entry's own steps go to the first of them; the others only see how long it took.
func recorded(ctx context.Context, batch []submission, checked time.Time) (_ context.Context, shared []*timeline.Span) {
	first := true
	for _, s := range batch {
		if s.span == nil {
			continue
		}
		s.span.Past(timeline.PlanCheck, s.handed, checked)
		if first {
			first, ctx = false, timeline.With(ctx, s.span)
		} else {
			shared = append(shared, s.span.Child(timeline.LogShared))
		}
	}
	return ctx, shared
}

// part is an entry that a batch becomes, or one of several in it.
type part struct {
	entry   any                    // nil = it cannot stand alone
	encoded []byte                 // where it is known already
	take    func(result any) error // gives the answers what became of it
}

// parts are what a batch comes to: registrations, then the plans of these, then the others, then evaluations of the jobs that lost something to those.
func parts(batch []submission, answers []answer) ([]part, error) {
	var list []part
	var atOnce, others []int // of the batch
	var evicted []*model.Evaluation
	for i, s := range batch {
		evicted = append(evicted, s.evicted...)
		if s.register == nil {
			others = append(others, i)
			continue
		}
		list = append(list, part{encoded: s.register.Entry, take: func(result any) error { answers[i].registered = result; return nil }})
		if len(s.plan.Place) > 0 {
			atOnce = append(atOnce, i)
		}
	}
	now := time.Now().UnixNano()
	if len(list) > 0 {
		ofNew, err := command.NewJobPlans(now, plansAt(batch, atOnce))
		if err != nil {
			return nil, err
		}
		list = append(list, part{entry: ofNew, take: func(result any) error { return placedAt(answers, atOnce, result) }})
	}
	list = append(list, part{entry: &command.PlanResults{Now: now, Plans: plansAt(batch, others)}, take: func(result any) error { return placedAt(answers, others, result) }})
	if len(evicted) > 0 {
		list = append(list, part{entry: &command.EvalUpdate{Now: now, Create: evicted}, take: func(result any) error {
			err, _ := result.(error)
			return err
		}})
	}
	return list, nil
}

// commit brings a batch onto the log as one entry, unless a server does not know how to read that.
func (a *Applier) commit(ctx context.Context, batch []submission) ([]answer, uint64, error) {
	answers := make([]answer, len(batch))
	list, err := parts(batch, answers)
	if err != nil {
		return nil, 0, err
	}
	whole := &command.Batch{Now: time.Now().UnixNano()}
	if len(list) > 1 {
		whole.Entries, err = a.encoded(list)
	}
	switch alone := !slices.ContainsFunc(list, func(p part) bool { return p.entry == nil }); {
	case err != nil && !alone:
		return nil, 0, err
	case err != nil || len(list) == 1:
		index, err := a.oneByOne(ctx, list)
		return answers, index, err
	}
	result, index, err := a.log.Apply(ctx, whole)
	if err != nil {
		return nil, 0, err
	}
	results, ok := result.([]any)
	if !ok || len(results) != len(list) {
		return nil, 0, fault.New(fault.Internal, "the log answered a batch of %d with %T", len(list), result)
	}
	for n, p := range list {
		err = errors.Join(err, p.take(results[n]))
	}
	return answers, index, err
}

func (a *Applier) encoded(list []part) ([][]byte, error) {
	if a.Encode == nil {
		return nil, errors.New("nothing makes entries of several parts")
	}
	entries := make([][]byte, len(list))
	for n, p := range list {
		if entries[n] = p.encoded; p.encoded != nil {
			continue
		}
		var err error
		if entries[n], err = a.Encode(p.entry); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// oneByOne brings parts onto the log as entries of their own.
func (a *Applier) oneByOne(ctx context.Context, list []part) (first uint64, err error) {
	for n, p := range list {
		result, index, err := a.log.Apply(ctx, p.entry)
		if n == 0 {
			first = index
		}
		if err == nil {
			err = p.take(result)
		}
		if err != nil {
			return first, err
		}
	}
	return first, nil
}

func plansAt(batch []submission, of []int) []*state.Placement {
	list := make([]*state.Placement, len(of))
	for n, i := range of {
		list[n] = batch[i].plan
	}
	return list
}

// placedAt takes over what the log made of plans.
func placedAt(answers []answer, of []int, result any) error {
	placed, ok := result.([]state.Placed)
	if !ok || len(placed) != len(of) {
		return fault.New(fault.Internal, "the log answered %d plans with %T", len(of), result)
	}
	for n, i := range of {
		answers[i].result.Placed = placed[n]
	}
	return nil
}

// check is the state with what a batch has been promised so far.
type check struct {
	snap   *state.Snapshot
	used   map[string]*sched.Usage
	gone   map[string]bool // allocations that make room for accepted ones
	quotas quotas
}

func newCheck(s *state.Snapshot) *check {
	return &check{snap: s, used: map[string]*sched.Usage{}, gone: map[string]bool{}, quotas: quotas{snap: s}}
}

// admit takes out of a plan what does not fit, and reports whether there was such. What the plan itself ends to make room counts as gone, but only if what
// it makes room for is accepted. A job that wants all or nothing, or that is not there yet, gets nothing unless all fit.
func (c *check) admit(p *state.Placement, unknown bool) (refused bool) {
	if unknown && c.snap.QuotaOf(p.Namespace) != nil { // what it takes of a quota is known from the job
		p.Place = nil
		return true
	}
	evicted := map[string][]*model.Allocation{} // by what they make room for
	for _, s := range p.Stop {
		if a := c.snap.Alloc(nil, s.AllocID); s.PreemptedBy != "" && a != nil && a.Holds() && !c.gone[a.ID] {
			evicted[s.PreemptedBy] = append(evicted[s.PreemptedBy], a)
		}
	}
	fits := p.Place[:0:0]
	var took map[string][]*model.Allocation // the room that accepted ones got; nil where nothing goes
	if slices.ContainsFunc(p.Stop, func(s state.Stop) bool { return s.PreemptedBy != "" }) {
		took = map[string][]*model.Allocation{}
	}
	c.quotas.stop(p)
	for _, a := range p.Place {
		room, ok := c.fits(p, a, evicted[a.ID])
		if !ok {
			refused = true
			continue
		}
		if took != nil {
			took[a.ID] = room
		}
		a.Job = nil // the store has it
		fits = append(fits, a)
	}
	if refused {
		if j := c.snap.Job(nil, p.Namespace, p.JobID); unknown || j != nil && j.AllAtOnce {
			for _, a := range fits {
				c.takeBack(p, a, took[a.ID])
			}
			fits = nil
			clear(took)
		}
	}
	p.Stop = slices.DeleteFunc(p.Stop, func(s state.Stop) bool {
		_, accepted := took[s.PreemptedBy]
		return s.PreemptedBy != "" && !accepted
	})
	p.Place = fits
	return refused
}

// fits takes an allocation into account, if it fits, in the room of those of its node that go for it; it returns those.
func (c *check) fits(p *state.Placement, a *model.Allocation, evicted []*model.Allocation) (took []*model.Allocation, ok bool) {
	n := c.snap.Node(nil, a.NodeID)
	if n == nil || !n.Ready() {
		return nil, false
	}
	u := c.usage(a.NodeID)
	after := *u
	for _, v := range evicted {
		if v.NodeID == a.NodeID && !c.gone[v.ID] {
			after.Sub(&v.Resources)
			took = append(took, v)
		}
	}
	if sched.Fits(n, &after, &a.Resources) != "" || !c.quotas.admit(p, a) {
		return nil, false
	}
	after.Add(&a.Resources)
	*u = after
	for _, v := range took {
		c.gone[v.ID] = true
	}
	return took, true
}

// takeBack undoes fits.
func (c *check) takeBack(p *state.Placement, a *model.Allocation, took []*model.Allocation) {
	u := c.usage(a.NodeID)
	u.Sub(&a.Resources)
	c.quotas.giveBack(p, a)
	for _, v := range took {
		u.Add(&v.Resources)
		delete(c.gone, v.ID)
	}
}

func (c *check) usage(nodeID string) *sched.Usage {
	u := c.used[nodeID]
	if u == nil {
		now := *c.snap.Usage(nodeID)
		u = &now
		c.used[nodeID] = u
	}
	return u
}
