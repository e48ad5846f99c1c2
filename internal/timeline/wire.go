package timeline

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The headers that traces travel by.
const (
	Header      = "Traceparent"       // of W3C Trace Context
	HeaderSteps = "Rockpool-Timeline" // of an answer: the steps that it took, see Steps
)

// maxParent bounds what is looked at of a Traceparent, in bytes: versions to come may be longer.
const maxParent = 128

// ParseTraceparent reads the header of W3C Trace Context, level 1. What is not well-formed is none.
func ParseTraceparent(h string) (Ref, bool) {
	var r Ref
	if len(h) < 55 || len(h) > maxParent || h[2] != '-' || h[35] != '-' || h[52] != '-' {
		return r, false
	}
	version, err := lowerHex(h[:2])
	if err != nil || version[0] == 0xff || version[0] == 0 && len(h) != 55 || len(h) > 55 && h[55] != '-' {
		return r, false
	}
	trace, err1 := lowerHex(h[3:35])
	span, err2 := lowerHex(h[36:52])
	flags, err3 := lowerHex(h[53:55])
	if err1 != nil || err2 != nil || err3 != nil {
		return r, false
	}
	copy(r.Trace[:], trace)
	copy(r.Span[:], span)
	r.Sampled = flags[0]&1 != 0
	return r, r.Trace != TraceID{} && r.Span != SpanID{}
}

func lowerHex(s string) ([]byte, error) {
	if strings.ToLower(s) != s {
		return nil, hex.InvalidByteError(s[0])
	}
	return hex.DecodeString(s)
}

// Traceparent is the header for a call below this span; "" of a nil one.
func (s *Span) Traceparent() string {
	if s == nil {
		return ""
	}
	return s.Ref().String()
}

// String is the Traceparent of a place; "" = there is none.
func (r Ref) String() string {
	if !r.Sampled || r.Trace == (TraceID{}) {
		return ""
	}
	return "00-" + r.Trace.String() + "-" + r.Span.String() + "-01"
}

const (
	maxTold  = 64      // steps that are told in one answer
	maxSteps = 4 << 10 // bytes of them
)

// Steps tells the steps below this span in one line, for who called: how long the span took until now, and of each step the name, its depth, when it began after the span and how long it took, in
// microseconds.
func (s *Span) Steps() string {
	if s == nil {
		return ""
	}
	now := time.Now()
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d", now.Sub(s.begun).Microseconds())
	n := 0
	for _, line := range tree(s.record.spans, s.id) {
		if n++; n > maxTold {
			break
		}
		ended := line.span.ended
		if ended.IsZero() {
			ended = now
		}
		part := fmt.Sprintf(",%s:%d:%d:%d", line.span.step, line.depth, line.span.begun.Sub(s.begun).Microseconds(), ended.Sub(line.span.begun).Microseconds())
		if b.Len()+len(part) > maxSteps {
			break
		}
		b.WriteString(part)
	}
	return b.String()
}

// Import adds the steps that another process told of the call that this span stands for. Its clock is not ours: what it did is put into the middle of the call, and
// nothing lies outside of it. It began at latest when its first answer was here; zero = that is not known. What is not well-formed ends the list.
func (s *Span) Import(steps string, answered time.Time) {
	if s == nil || steps == "" || len(steps) > maxSteps {
		return
	}
	now := time.Now()
	s.record.mu.Lock()
	from, to := s.begun, s.ended
	s.record.mu.Unlock()
	if to.IsZero() {
		to = now
	}
	total, rest, _ := strings.Cut(steps, ",")
	took, err := strconv.ParseUint(total, 10, 40)
	if err != nil {
		return
	}
	offset := from.Add(max(to.Sub(from)-micros(took), 0) / 2)
	if !answered.IsZero() {
		offset = clamp(offset, from, answered)
	}
	above := []*Span{s}
	n := 0
	for part := range strings.SplitSeq(rest, ",") {
		f := strings.Split(part, ":")
		if n++; n > maxTold || len(f) != 4 {
			return
		}
		step, ok := stepOf[f[0]]
		depth, err1 := strconv.ParseUint(f[1], 10, 8)
		start, err2 := strconv.ParseUint(f[2], 10, 40)
		length, err3 := strconv.ParseUint(f[3], 10, 40)
		if !ok || err1 != nil || err2 != nil || err3 != nil || depth >= uint64(len(above)) {
			return
		}
		begun := clamp(offset.Add(micros(start)), from, to)
		c := above[depth].child(step, begun, clamp(begun.Add(micros(length)), begun, to), true)
		if c == nil {
			return
		}
		above = append(above[:depth+1], c)
	}
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

// line is a span and how deep it lies below the one that was asked about.
type line struct {
	span  *Span
	depth int
}

// tree lists the spans below one, each before those below it, in the order in which they began. Spans whose parent is not here stand at the top when root is zero. The lock of the record is held.
func tree(spans []*Span, root SpanID) []line {
	below := map[SpanID][]*Span{}
	here := map[SpanID]bool{}
	for _, s := range spans {
		here[s.id] = true
	}
	for _, s := range spans {
		parent := s.parent
		if !here[parent] {
			parent = SpanID{}
		}
		below[parent] = append(below[parent], s)
	}
	var out []line
	var walk func(id SpanID, depth int)
	walk = func(id SpanID, depth int) {
		children := below[id]
		delete(below, id) // a ring of parents, which nobody makes, would otherwise have no end
		slices.SortStableFunc(children, func(a, b *Span) int { return a.begun.Compare(b.begun) })
		for _, c := range children {
			out = append(out, line{c, depth})
			walk(c.id, depth+1)
		}
	}
	walk(root, 0)
	return out
}
