package timeline

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"
)

// TraceID names a trace, SpanID a span of it. Zero is none.
type (
	TraceID [16]byte
	SpanID  [8]byte
)

func (t TraceID) String() string { return hex.EncodeToString(t[:]) }
func (s SpanID) String() string  { return hex.EncodeToString(s[:]) }

// Ref is where a span of another process, or one that has ended, stands.
type Ref struct {
	Trace   TraceID
	Span    SpanID
	Sampled bool
}

const (
	maxSpans = 96 // of one trace in one process; more are counted and dropped
	maxTags  = 6  // attributes of a span
	maxText  = 64 // bytes of an attribute's text
)

// tag is one attribute: a text or a number.
type tag struct {
	key    Key
	text   string
	number int64
}

// Span is one step that was begun. A nil one takes every call. It is safe for concurrent use.
type Span struct {
	record *record
	above  *Span // nil = it is the first here, or was told

	// Guarded by record.mu.
	id, parent SpanID
	step       Step
	begun      time.Time
	ended      time.Time // zero while it is open
	failed     bool
	told       bool // by another process, which sends it to its own collector
	tags       []tag
}

// record is what one process knows of one trace.
type record struct {
	recorder *Recorder
	trace    TraceID
	link     Ref  // of the start of the runner that it has to do with; zero = none
	start    bool // of a job, as far as it takes place here

	mu      sync.Mutex
	spans   []*Span
	dropped int
	silent  bool // nothing of it is kept or sent
	runner  string
	exec    string
}

type spanKey struct{}

// From is the span that ctx carries; nil = nothing is recorded.
func From(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// With has ctx carry a span. A nil one changes nothing.
func With(ctx context.Context, s *Span) context.Context {
	if s == nil {
		return ctx
	}
	return context.WithValue(ctx, spanKey{}, s)
}

// Start begins a step of what ctx carries. The context that it returns carries the new span.
func Start(ctx context.Context, step Step) (context.Context, *Span) {
	s := From(ctx).Child(step)
	return With(ctx, s), s
}

// Child begins a step now.
func (s *Span) Child(step Step) *Span {
	if s == nil {
		return nil
	}
	c := s.child(step, time.Now(), time.Time{}, false)
	if c != nil {
		c.above = s // before anybody else knows it
	}
	return c
}

// Above is the span that this one was begun below; nil = there is none here.
func (s *Span) Above() *Span {
	if s == nil {
		return nil
	}
	return s.above
}

// Laps tells one step after the other, each from the end of the one before. It is for one goroutine.
type Laps struct {
	span *Span
	at   time.Time
}

// Laps begins with the first step now.
func (s *Span) Laps() Laps {
	if s == nil {
		return Laps{}
	}
	return Laps{s, time.Now()}
}

// Done says that a step is over, and the next one begins.
func (l *Laps) Done(step Step) *Span {
	if l.span == nil {
		return nil
	}
	begun := l.at
	l.at = time.Now()
	return l.span.Past(step, begun, l.at)
}

// Past adds a step that is over. It is cut to what its parent covers so far.
func (s *Span) Past(step Step, begun, ended time.Time) *Span {
	if s == nil {
		return nil
	}
	now := time.Now()
	s.record.mu.Lock()
	from, to := s.begun, now
	if !s.ended.IsZero() {
		to = s.ended
	}
	s.record.mu.Unlock()
	begun = clamp(begun, from, to)
	return s.child(step, begun, clamp(ended, begun, to), false)
}

// After adds a step from the end of this one until now.
func (s *Span) After(step Step) {
	if s == nil {
		return
	}
	now := time.Now()
	s.record.mu.Lock()
	ended := s.ended
	s.record.mu.Unlock()
	if !ended.IsZero() {
		s.child(step, ended, now, false)
	}
}

func clamp(t, from, to time.Time) time.Time {
	switch {
	case t.Before(from):
		return from
	case t.After(to):
		return to
	}
	return t
}

func (s *Span) child(step Step, begun, ended time.Time, told bool) *Span {
	r := s.record
	c := &Span{record: r, id: newSpanID(), parent: s.id, step: step, begun: begun, ended: ended, told: told}
	r.mu.Lock()
	full := r.silent || len(r.spans) >= maxSpans
	if full {
		r.dropped++
	} else {
		r.spans = append(r.spans, c)
	}
	r.mu.Unlock()
	if full {
		r.recorder.count(dropped, 1)
		return nil
	}
	if !ended.IsZero() && !told {
		r.recorder.send(r, c)
	}
	return c
}

// End ends the step. Only the first call counts.
func (s *Span) End() {
	if s != nil {
		s.endAt(time.Now())
	}
}

func (s *Span) endAt(now time.Time) {
	r := s.record
	r.mu.Lock()
	done := !s.ended.IsZero()
	if !done {
		s.ended = now
	}
	silent := r.silent
	whole := !silent && r.start && r.spans[0] == s
	r.mu.Unlock()
	if done || silent {
		return
	}
	r.recorder.send(r, s)
	if whole {
		r.recorder.show(r)
	}
}

// Fail marks the step as one that went wrong. What went wrong is in the log.
func (s *Span) Fail(err error) {
	if s == nil || err == nil {
		return
	}
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.failed = true
}

// Text adds an attribute. What is longer than any id of ours is cut, and what no id of ours could hold is left out. A word about a runner or an execution is
// also what the trace is found by.
func (s *Span) Text(key Key, value string) {
	if s == nil || value == "" {
		return
	}
	value = clean(value)
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	switch key {
	case RunnerID:
		s.record.runner = value
	case ExecutionID:
		s.record.exec = value
	}
	s.tag(tag{key: key, text: value})
}

// Number adds an attribute.
func (s *Span) Number(key Key, value int64) {
	if s == nil {
		return
	}
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.tag(tag{key: key, number: value})
}

// tag sets an attribute. The lock is held.
func (s *Span) tag(t tag) {
	if i := slices.IndexFunc(s.tags, func(o tag) bool { return o.key == t.key }); i >= 0 {
		s.tags[i] = t
	} else if len(s.tags) < maxTags {
		s.tags = append(s.tags, t)
	}
}

// clean keeps what ids, routes and words of the code are made of.
func clean(s string) string {
	s = s[:min(len(s), maxText)]
	return strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("-_./:", c):
			return c
		}
		return -1
	}, s)
}

// Begun is when the step began; zero of a nil span.
func (s *Span) Begun() time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.begun // it never changes
}

// Top is the first span of the trace in this process.
func (s *Span) Top() *Span {
	if s == nil {
		return nil
	}
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	if len(s.record.spans) == 0 {
		return nil
	}
	return s.record.spans[0]
}

// Discard forgets the whole trace, as that of a caller who was not let in.
func (s *Span) Discard() {
	if s == nil {
		return
	}
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.record.silent, s.record.spans = true, nil
}

// Ref is where the span stands.
func (s *Span) Ref() Ref {
	if s == nil {
		return Ref{}
	}
	return Ref{s.record.trace, s.id, true}
}

// About says which job the trace has to do with: the two are linked, and the trace is found by the job's id.
func (s *Span) About(job string) {
	if s == nil {
		return
	}
	trace, span := OfJob(s.record.recorder.opts.Namespace, job)
	s.Text(RunnerID, job)
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.record.link = Ref{Trace: trace, Span: span}
}

func newSpanID() (id SpanID) {
	_, _ = rand.Read(id[:]) // never fails, by its documentation
	id[0] |= 1              // not zero
	return id
}

func newTraceID() (id TraceID) {
	_, _ = rand.Read(id[:])
	id[0] |= 1
	return id
}

// OfJob is the trace of a job's start, and the span that all others of it are below. Every process that has to do with the job finds them by itself.
func OfJob(namespace, job string) (TraceID, SpanID) {
	if namespace == "" {
		namespace = "default"
	}
	sum := sha256.Sum256([]byte("rockpool job\x00" + namespace + "\x00" + job))
	var t TraceID
	var s SpanID
	copy(t[:], sum[:16])
	copy(s[:], sum[16:])
	t[0] |= 1
	s[0] |= 1
	return t, s
}
