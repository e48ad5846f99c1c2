package nomad

import (
	"net/http"
	"time"

	"rockpool/internal/timeline"
)

// traced has calls carry the trace that they are part of, and takes in the steps that the cluster tells. A Nomad of others leaves the header alone.
type traced struct{ next http.RoundTripper }

// RoundTrip sends a request on.
func (t traced) RoundTrip(r *http.Request) (*http.Response, error) {
	span := timeline.From(r.Context()).Child(timeline.ClusterCall)
	if span == nil {
		return t.next.RoundTrip(r)
	}
	defer span.End()
	span.Text(timeline.Call, callOf(r.Method, r.URL.Path))
	r = r.Clone(r.Context())
	r.Header.Set(timeline.Header, span.Traceparent())
	resp, err := t.next.RoundTrip(r)
	span.Fail(err)
	if err == nil {
		span.Number(timeline.Status, int64(resp.StatusCode))
		span.Import(resp.Header.Get(timeline.HeaderSteps), time.Time{})
	}
	return resp, err
}

// stages are the steps of a runner's start that an allocation's times tell, in their order. Times of nodes are not believed: none is before the one that it follows, nor to come.
func (a *allocation) stages() []stage {
	list := []stage{{timeline.RunnerPlaced, a.CreateTime}}
	if t := a.TaskStates[mainTask]; t != nil {
		for _, e := range t.Events {
			if e == nil {
				continue
			}
			switch e.Type {
			case "Received":
				list = append(list, stage{timeline.RunnerPushed, e.Time})
			case "Task Setup":
				list = append(list, stage{timeline.RunnerPrepared, e.Time})
			case "Started":
				list = append(list, stage{timeline.RunnerStarted, e.Time})
			}
		}
	}
	return append(list, stage{timeline.RunnerReported, a.ModifyTime})
}

// stage is a step and when it ended, in nanoseconds of Unix; 0 = it is not known.
type stage struct {
	step  timeline.Step
	ended int64
}

// ready ends the timeline of a runner's start.
func (c *Client) ready(id string, a *allocation) {
	span := c.opts.Timeline.Runner(id)
	if span == nil {
		return
	}
	span.Text(timeline.AllocID, a.ID)
	at, now := span.Begun(), time.Now()
	for _, s := range a.stages() {
		ended := time.Unix(0, s.ended)
		if s.ended == 0 {
			continue
		}
		if ended.Before(at) {
			ended = at
		}
		span.Past(s.step, at, ended)
		at = ended
	}
	span.Past(timeline.RunnerKnown, at, now)
	span.End()
}
