package timeline

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Timeline is a trace as people look at it.
type Timeline struct {
	Trace     string
	Runner    string // id; "" = it has to do with none
	Execution string // likewise
	Begun     time.Time
	Steps     []Row
	Dropped   int // steps that there was no room for
}

// Row is one step.
type Row struct {
	Step      string
	Depth     int
	Start     time.Duration // after the beginning of the timeline
	Duration  time.Duration // negative = it goes on
	Elsewhere bool          // told by another process
	Failed    bool
	Tags      map[string]string
}

// Query says which timelines are wanted; "" = any.
type Query struct {
	Runner, Execution string
	Limit             int
}

// Find lists what is kept, newest first.
func (r *Recorder) Find(q Query) []Timeline {
	var out []Timeline
	for _, rec := range r.records() {
		if len(out) >= q.Limit {
			break
		}
		if t, ok := rec.view(q); ok {
			out = append(out, t)
		}
	}
	return out
}

func (r *record) view(q Query) (Timeline, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent || len(r.spans) == 0 || q.Runner != "" && q.Runner != r.runner || q.Execution != "" && q.Execution != r.exec {
		return Timeline{}, false
	}
	t := Timeline{Trace: r.trace.String(), Runner: r.runner, Execution: r.exec, Begun: r.spans[0].begun, Dropped: r.dropped}
	for _, l := range tree(r.spans, SpanID{}) {
		s := l.span
		row := Row{Step: s.step.String(), Depth: l.depth, Start: s.begun.Sub(t.Begun), Duration: -1, Elsewhere: s.told, Failed: s.failed}
		if !s.ended.IsZero() {
			row.Duration = s.ended.Sub(s.begun)
		}
		for _, a := range s.tags {
			if row.Tags == nil {
				row.Tags = map[string]string{}
			}
			if row.Tags[a.key.String()] = a.text; a.text == "" {
				row.Tags[a.key.String()] = fmt.Sprint(a.number)
			}
		}
		t.Steps = append(t.Steps, row)
	}
	return t, true
}

const barWidth = 40 // characters

// Print writes a timeline for people: each step with when it began, how long it took, and a bar.
func (t Timeline) Print(w io.Writer) error {
	var whole time.Duration
	for _, s := range t.Steps {
		whole = max(whole, s.Start+max(s.Duration, 0))
	}
	title := "trace " + t.Trace
	if t.Runner != "" {
		title += "  runner " + t.Runner
	}
	if t.Execution != "" {
		title += "  execution " + t.Execution
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s, %s in all\n%9s %9s\n", title, t.Begun.UTC().Format("2006-01-02T15:04:05.000000Z"), millis(whole), "at ms", "took ms")
	for _, s := range t.Steps {
		took := "goes on"
		if s.Duration >= 0 {
			took = bare(s.Duration)
		}
		name := strings.Repeat("  ", min(s.Depth, 12)) + s.Step
		if s.Failed {
			name += " (failed)"
		}
		for _, key := range []Key{Route, Call} {
			if v := s.Tags[key.String()]; v != "" {
				name += " " + v
			}
		}
		fmt.Fprintf(&b, "%9s %9s  %-*s  %s\n", bare(s.Start), took, barWidth, bar(s, whole), name)
	}
	if t.Dropped > 0 {
		fmt.Fprintf(&b, "%d more steps were not kept\n", t.Dropped)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func bare(d time.Duration) string   { return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond)) }
func millis(d time.Duration) string { return bare(d) + " ms" }

// bar shows when a step was under way: = here, - in another process.
func bar(s Row, whole time.Duration) string {
	if whole <= 0 {
		return ""
	}
	mark := "="
	if s.Elsewhere {
		mark = "-"
	}
	from := min(int(s.Start*barWidth/whole), barWidth-1)
	length := max(int(s.Duration*barWidth/whole), 1)
	if s.Duration < 0 {
		length = barWidth - from
	}
	return strings.Repeat(" ", from) + strings.Repeat(mark, min(length, barWidth-from))
}
