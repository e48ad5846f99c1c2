package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"rockpool/internal/api/dto"
	"rockpool/internal/timeline"
)

// Wanted says which timelines are asked for; "" and 0 = any.
type Wanted struct {
	Runner, Execution string
	Limit             int
}

// ShowTimelines prints where the time of runners and requests went, the oldest first, so that the newest is where the reader looks.
func ShowTimelines(ctx context.Context, t Target, w Wanted, out io.Writer) error {
	return t.with(ctx, func(ctx context.Context, c *client) error {
		q := url.Values{}
		for name, v := range map[string]string{"runner": w.Runner, "execution": w.Execution} {
			if v != "" {
				q.Set(name, v)
			}
		}
		if w.Limit > 0 {
			q.Set("limit", strconv.Itoa(w.Limit))
		}
		_, data, err := c.request(ctx, "GET", "/rockpool/timelines?"+q.Encode(), nil, 200)
		if err != nil {
			return err
		}
		if t.JSON {
			_, err := fmt.Fprintln(out, string(data))
			return err
		}
		var all dto.Timelines
		if err := json.Unmarshal(data, &all); err != nil {
			return fmt.Errorf("the gateway's answer is not what was expected: %w", err)
		}
		if len(all.Timelines) == 0 {
			_, err := fmt.Fprintln(out, "nothing of it was recorded, or it is no longer kept")
			return err
		}
		for i := len(all.Timelines) - 1; i >= 0; i-- {
			if err := timelineIn(all.Timelines[i]).Print(out); err != nil {
				return err
			}
			if i > 0 {
				fmt.Fprintln(out)
			}
		}
		return nil
	})
}

func timelineIn(d dto.Timeline) timeline.Timeline {
	t := timeline.Timeline{Trace: printable(d.TraceID), Runner: printable(d.RunnerID), Execution: printable(d.ExecutionID), Dropped: d.Dropped}
	t.Begun, _ = time.Parse(time.RFC3339Nano, d.Begun)
	for _, s := range d.Steps {
		row := timeline.Row{Step: printable(s.Step), Depth: max(s.Depth, 0), Start: micros(s.Start), Duration: micros(s.Duration), Elsewhere: s.Elsewhere, Failed: s.Failed, Tags: map[string]string{}}
		for k, v := range s.Attributes {
			row.Tags[k] = printable(v)
		}
		if s.Open {
			row.Duration = -1
		}
		t.Steps = append(t.Steps, row)
	}
	return t
}

// micros are microseconds of an answer, which may say anything.
func micros(us float64) time.Duration {
	return time.Duration(min(max(us, 0), 1e12) * float64(time.Microsecond))
}
