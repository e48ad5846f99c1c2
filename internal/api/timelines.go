package api

import (
	"context"
	"net/http"
	"time"

	"rockpool/internal/api/dto"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/timeline"
)

// traced are the rows whose requests are recorded: those that runners are used by. The WebSocket of an execution belongs to the request that asked for it.
var traced = map[string]bool{"provideRunner": true, "deleteRunner": true, "/files_list": true, "/files": true, "/files/raw": true, "/execute": true}

// trace begins the span of a request. Whether it is recorded is decided here, whatever its header says.
func (a *API) trace(r *http.Request, route endpoint.Route) *timeline.Span {
	if a.opts.Timeline == nil || !traced[route.Name] {
		return nil
	}
	return a.opts.Timeline.Stranger(r.Header.Get(timeline.Header))
}

// maxTimelines bounds one answer.
const maxTimelines = 100

type timelinesRequest struct {
	Runner    string `query:"runner"`
	Execution string `query:"execution"`
	Limit     int    `query:"limit"`
}

// listTimelines shows what was recorded lately, newest first.
func (a *API) listTimelines(_ context.Context, caller auth.Identity, q timelinesRequest) (dto.Timelines, error) {
	out := dto.Timelines{Timelines: []dto.Timeline{}}
	if err := a.operates(caller); err != nil {
		return out, err
	}
	for name, id := range map[string]string{"runner": q.Runner, "execution": q.Execution} {
		if id != "" && !ident.ValidName(id) {
			return out, fault.New(fault.Invalid, "%s: it is no id", name)
		}
	}
	switch {
	case a.opts.Timeline == nil:
		return out, fault.New(fault.NotFound, "nothing is recorded: set tracing.timelines")
	case q.Limit < 0 || q.Limit > maxTimelines:
		return out, fault.New(fault.Invalid, "limit must be between 1 and %d", maxTimelines)
	case q.Limit == 0:
		q.Limit = maxTimelines
	}
	for _, t := range a.opts.Timeline.Find(timeline.Query{Runner: q.Runner, Execution: q.Execution, Limit: q.Limit}) {
		out.Timelines = append(out.Timelines, timelineOut(t))
	}
	return out, nil
}

func timelineOut(t timeline.Timeline) dto.Timeline {
	out := dto.Timeline{TraceID: t.Trace, RunnerID: t.Runner, ExecutionID: t.Execution, Begun: t.Begun.UTC().Format(time.RFC3339Nano), Dropped: t.Dropped, Steps: []dto.Step{}}
	for _, s := range t.Steps {
		out.Steps = append(out.Steps, dto.Step{
			Step: s.Step, Depth: s.Depth, Start: micros(s.Start), Duration: micros(s.Duration), Open: s.Duration < 0, Elsewhere: s.Elsewhere, Failed: s.Failed, Attributes: s.Tags,
		})
	}
	return out
}

// micros is a duration in microseconds; none is negative.
func micros(d time.Duration) float64 { return float64(max(d, 0)) / float64(time.Microsecond) }
