package timeline

import (
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rockpool/internal/logging"
)

// Results that Options.Count is told.
const (
	sent    = "sent"
	dropped = "dropped" // there was no room
	refused = "refused" // by the collector, or it could not be reached
)

// Options of a recorder.
type Options struct {
	Service   string            // that spans are sent as
	Version   string            // of it
	Resource  map[string]string // more attributes of the sender; the service's name and version are the ones above
	Namespace string            // of the jobs that are runners; "" = default
	Ratio     float64           // of traces that are recorded, 0 to 1
	Keep      int               // traces that are kept to be looked at; 0 = none
	Tell      bool              // record although nothing is kept or sent, for callers that are told the steps
	Collector
	// Count is told what became of spans: sent, dropped or refused. It must not block. nil = nobody is told.
	Count func(result string, n int)
	Log   logging.Logger
}

// Recorder keeps and sends what is recorded. A nil one records nothing.
type Recorder struct {
	opts  Options
	queue chan export // nil = there is no collector
	up    uploader
	limit perSecond
	shown atomic.Pointer[Recorder] // by which starts of jobs are shown; see ShowIn

	mu   sync.Mutex
	ring []*record // of opts.Keep; next is the oldest
	next int
}

const (
	queueLength = 4096 // spans that wait for the collector, of about 300 bytes each
	maxRate     = 2000 // traces a second that are begun, whatever the ratio says and callers ask for
	// MaxKeep bounds the traces that are kept.
	MaxKeep = 4096
)

// New makes a recorder, or none where nothing would become of what it records.
func New(o Options) (*Recorder, error) {
	if o.Ratio <= 0 || o.Endpoint == "" && o.Keep <= 0 && !o.Tell {
		return nil, nil
	}
	if o.Log == nil {
		o.Log = logging.Discard()
	}
	r := &Recorder{opts: o, limit: perSecond{most: maxRate}}
	if o.Endpoint != "" {
		up, err := newUploader(o.Collector)
		if err != nil {
			return nil, err
		}
		up.resource = o.attributes()
		r.up, r.queue = up, make(chan export, queueLength)
	}
	return r, nil
}

func (r *Recorder) count(result string, n int) {
	if r.opts.Count != nil {
		r.opts.Count(result, n)
	}
}

// perSecond grants so many in each second.
type perSecond struct {
	most  int64
	state atomic.Int64 // second<<20 | granted in it
}

func (p *perSecond) grant(now time.Time) bool {
	for {
		old := p.state.Load()
		second, n := old>>20, old&(1<<20-1)
		if s := now.Unix(); s != second {
			second, n = s, 0
		}
		if n >= p.most {
			return false
		}
		if p.state.CompareAndSwap(old, second<<20|(n+1)) {
			return true
		}
	}
}

// chosen is the decision about a trace whose id nobody could choose: every process with the same ratio decides the same.
func (r *Recorder) chosen(t TraceID) bool {
	return r.opts.Ratio >= 1 || float64(binary.BigEndian.Uint64(t[8:])>>11)/(1<<53) < r.opts.Ratio
}

// Stranger begins the trace of a request from somebody who is not believed. What the Traceparent says connects the trace with the caller's, but whether it is recorded is decided here alone.
func (r *Recorder) Stranger(traceparent string) *Span {
	if r == nil || r.opts.Ratio < 1 && rand.Float64() >= r.opts.Ratio {
		return nil
	}
	ref, ok := ParseTraceparent(traceparent)
	if !ok {
		ref = Ref{Trace: newTraceID()}
	}
	return r.begin(ref.Trace, newSpanID(), ref.Span, Request)
}

// Partner begins the part of a trace that takes place here, of a caller who has decided that it is recorded.
func (r *Recorder) Partner(traceparent string) *Span {
	if r == nil || traceparent == "" {
		return nil
	}
	ref, ok := ParseTraceparent(traceparent)
	if !ok || !ref.Sampled {
		return nil
	}
	return r.begin(ref.Trace, newSpanID(), ref.Span, Request)
}

// Start begins the trace of a runner's start at the process that registers it.
func (r *Recorder) Start(runner string) *Span {
	if r == nil {
		return nil
	}
	trace, root := OfJob(r.opts.Namespace, runner)
	if !r.chosen(trace) {
		return nil
	}
	s := r.begin(trace, root, SpanID{}, RunnerStart)
	s.Text(RunnerID, runner)
	return s
}

// OfJob begins a step of a job's start that takes place here. The process that registered the job has the span that it is below.
func (r *Recorder) OfJob(namespace, job string, step Step) *Span {
	if r == nil {
		return nil
	}
	trace, root := OfJob(namespace, job)
	if !r.chosen(trace) {
		return nil
	}
	s := r.begin(trace, newSpanID(), root, step)
	if s != nil {
		s.record.start = true
	}
	return s
}

// ShowIn has the steps of jobs' starts that take place here appear in the timelines that another recorder of this process keeps of them. Only r sends them.
func (r *Recorder) ShowIn(keeper *Recorder) {
	if r != nil {
		r.shown.Store(keeper)
	}
}

// show tells the steps of a start that is over.
func (r *Recorder) show(rec *record) {
	keeper := r.shown.Load()
	if keeper == nil {
		return
	}
	rec.mu.Lock()
	root := rec.spans[0].parent
	rec.mu.Unlock()
	top := keeper.first(rec.trace, root)
	if top == nil {
		return
	}
	rec.mu.Lock()
	spans := make([]*Span, 0, len(rec.spans))
	for _, s := range rec.spans {
		if !s.ended.IsZero() {
			spans = append(spans, &Span{record: top.record, id: s.id, parent: s.parent, step: s.step, begun: s.begun, ended: s.ended, failed: s.failed, told: true, tags: slices.Clone(s.tags)})
		}
	}
	rec.mu.Unlock()
	top.record.mu.Lock()
	defer top.record.mu.Unlock()
	n := min(len(spans), max(maxSpans-len(top.record.spans), 0))
	top.record.spans = append(top.record.spans, spans[:n]...)
	top.record.dropped += len(spans) - n
}

func (r *Recorder) begin(trace TraceID, id, parent SpanID, step Step) *Span {
	now := time.Now()
	if !r.limit.grant(now) {
		r.count(dropped, 1)
		return nil
	}
	rec := &record{recorder: r, trace: trace}
	s := &Span{record: rec, id: id, parent: parent, step: step, begun: now}
	rec.spans = append(rec.spans, s)
	if r.opts.Keep > 0 {
		r.mu.Lock()
		if len(r.ring) < r.opts.Keep {
			r.ring = append(r.ring, rec)
		} else {
			r.ring[r.next] = rec
			r.next = (r.next + 1) % len(r.ring)
		}
		r.mu.Unlock()
	}
	return s
}

// records are those that are kept, newest first.
func (r *Recorder) records() []*record {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Concat(r.ring[r.next:], r.ring[:r.next])
	slices.Reverse(list)
	return list
}

// Runner is the span of a runner's start while it is kept; nil = it is not.
func (r *Recorder) Runner(id string) *Span {
	if r == nil {
		return nil
	}
	trace, root := OfJob(r.opts.Namespace, id)
	if !r.chosen(trace) {
		return nil
	}
	return r.first(trace, root)
}

// first is the first span of a trace while it is kept, if that is root.
func (r *Recorder) first(trace TraceID, root SpanID) *Span {
	for _, rec := range r.records() {
		if rec.trace != trace {
			continue
		}
		rec.mu.Lock()
		var s *Span
		if len(rec.spans) > 0 && rec.spans[0].id == root {
			s = rec.spans[0]
		}
		rec.mu.Unlock()
		if s != nil {
			return s
		}
	}
	return nil
}

// send has a span go to the collector. It never waits.
func (r *Recorder) send(rec *record, s *Span) {
	if r.queue == nil {
		return
	}
	rec.mu.Lock()
	e := export{trace: rec.trace, link: rec.link, id: s.id, parent: s.parent, step: s.step, begun: s.begun, ended: s.ended, failed: s.failed, tags: slices.Clone(s.tags)}
	rec.mu.Unlock()
	select {
	case r.queue <- e:
	default:
		r.count(dropped, 1)
	}
}

const (
	batchLength = 512
	batchTime   = time.Second     // that a span waits for others
	flushTime   = 3 * time.Second // for what is left at the end
)

// Run sends spans until ctx ends, and then for a moment what is left. Without a collector it waits for ctx.
func (r *Recorder) Run(ctx context.Context) error {
	if r == nil || r.queue == nil {
		<-ctx.Done()
		return nil
	}
	if err := r.up.open(ctx); err != nil {
		return err
	}
	told := false
	var batch []export
	for {
		if batch = r.gather(ctx); ctx.Err() != nil {
			break
		}
		// Not derived from the end of ctx: what is under way is finished, within its own bound.
		if err := r.upload(context.WithoutCancel(ctx), batch); (err != nil) != told {
			if told = err != nil; told {
				r.opts.Log.WithField("error", err.Error()).Warn("the collector does not take spans, they are dropped")
			} else {
				r.opts.Log.Info("the collector takes spans again")
			}
		}
	}
	r.flush(ctx, batch)
	return r.up.close(context.WithoutCancel(ctx))
}

// gather waits for spans and takes those that come within a moment.
func (r *Recorder) gather(ctx context.Context) []export {
	var batch []export
	select {
	case e := <-r.queue:
		batch = append(batch, e)
	case <-ctx.Done():
		return nil
	}
	t := time.NewTimer(batchTime)
	defer t.Stop()
	for len(batch) < batchLength {
		select {
		case e := <-r.queue:
			batch = append(batch, e)
		case <-t.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// flush sends what there is, as far as there is time.
func (r *Recorder) flush(ctx context.Context, batch []export) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	for {
		for len(batch) < batchLength && len(r.queue) > 0 {
			batch = append(batch, <-r.queue) // nobody else takes from it
		}
		if len(batch) == 0 || ctx.Err() != nil {
			r.count(dropped, len(batch)+len(r.queue))
			return
		}
		_ = r.upload(ctx, batch) // it is counted
		batch = nil
	}
}

func (r *Recorder) upload(ctx context.Context, batch []export) error {
	err := r.up.upload(ctx, batch)
	if err != nil {
		r.count(refused, len(batch))
		return err
	}
	r.count(sent, len(batch))
	return nil
}

// ValidRatio reports whether a ratio can be configured.
func ValidRatio(f float64) bool { return f >= 0 && f <= 1 && !math.IsNaN(f) }
