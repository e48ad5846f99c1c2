package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner"
	"rockpool/internal/runner/pool"
)

const (
	retryTime  = time.Second      // between two connections of the feed
	silentTime = 90 * time.Second // a stream without a line for so long is dead; there is one every 30 s
	listTime   = time.Minute      // for a full listing
	steadyTime = 10 * time.Second // a feed that has lasted so long had been well
	repeatTime = 5 * time.Minute  // between two words about the same outage
	maxEvents  = 64 << 20         // bytes of one line of the stream
)

// Watch feeds f until ctx ends; after a break it begins anew.
func (c *Client) Watch(ctx context.Context, f runner.Feed) error {
	var told time.Time
	for {
		begun := time.Now()
		err := c.follow(ctx, f)
		if ctx.Err() != nil {
			return nil
		}
		// Of a cluster that cannot be reached it is told once, and again from time to time.
		if now := time.Now(); told.IsZero() || now.Sub(begun) > steadyTime || now.Sub(told) > repeatTime {
			told = now
			c.log.WithField("error", fmt.Sprint(err)).Warn("the cluster's event stream broke, it is opened again with a full listing")
		}
		t := time.NewTimer(retryTime)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// frame is one line of the event stream. nomad/api decodes through generic maps, which loses precision and time; here a payload is decoded
// once, and only when it matters.
type frame struct {
	Index  uint64
	Error  json.RawMessage // of a server that says why it ends the stream
	Events []struct {
		Topic, Type, Key string
		Index            uint64
		Payload          json.RawMessage
	}
}

type payload struct {
	Job        *api.Job
	Evaluation *evaluation
	Allocation *allocation
}

// follow is one connection of the feed.
func (c *Client) follow(ctx context.Context, f runner.Feed) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := c.probe(ctx); err != nil {
		return err
	}
	alive := time.AfterFunc(silentTime, func() { cancel(errors.New("nothing was heard of the cluster")) })
	defer alive.Stop()
	// Opened before the listing: whatever the listing lacks comes by event.
	stream, err := c.api.Raw().Response("/v1/event/stream?topic=Job&topic=Evaluation&topic=Allocation&index=0", c.query(ctx))
	if err != nil {
		return classify(err, "open the event stream")
	}
	defer stream.Close()
	view, err := c.listing(ctx)
	if err != nil {
		return err
	}
	if c.listed.Swap(true) && c.opts.Observer != nil {
		c.opts.Observer.EventGap()
	}
	f.All(view.all(), view.jobsIndex)
	lines := &lineLimit{from: stream, left: maxEvents}
	d := json.NewDecoder(lines)
	for last, heard := uint64(0), false; ; heard = true {
		var fr frame
		err := d.Decode(&fr)
		switch {
		case errors.Is(err, io.EOF) && !heard:
			return errors.New("the cluster ended the event stream without a word: the token must be allowed to read jobs in the namespace")
		case err != nil:
			return fmt.Errorf("read the event stream: %w", errors.Join(err, context.Cause(ctx)))
		case len(fr.Error) > 0 && string(fr.Error) != "null":
			return fmt.Errorf("the cluster ended the event stream: %.500s", fr.Error)
		case fr.Index != 0 && fr.Index < last:
			// What comes now would be taken for old: a snapshot was restored, or another server answers.
			return fmt.Errorf("the event stream went back from index %d to %d", last, fr.Index)
		}
		last, lines.left = max(last, fr.Index), maxEvents
		alive.Reset(silentTime)
		c.lag.heard(fr.Index, time.Now())
		for _, ev := range fr.Events {
			if ev.Index == 0 {
				ev.Index = fr.Index
			}
			if err := c.event(ctx, view, f, ev.Topic, ev.Type, ev.Key, ev.Index, ev.Payload); err != nil {
				return err
			}
		}
	}
}

// lineLimit bounds what is read without an end of line.
type lineLimit struct {
	from io.Reader
	left int
}

func (l *lineLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("an event takes more than %d bytes", maxEvents)
	}
	n, err := l.from.Read(p)
	l.left -= n
	return n, err
}

func (c *Client) event(ctx context.Context, v *view, f runner.Feed, topic, kind, key string, index uint64, data json.RawMessage) error {
	if c.opts.Observer != nil {
		c.opts.Observer.Event(topic, kind, key, data)
	}
	if id, ok := templateEnvironment(key); ok && topic == "Job" && c.defs.feed != nil {
		return c.defs.event(id, kind, index, data)
	}
	if topic == "Job" {
		if _, ok := runnerEnvironment(key); !ok || index <= v.jobsIndex {
			return nil
		}
		if kind == "JobDeregistered" || kind == "JobBatchDeregistered" {
			v.forget(key)
			c.known.take(key)
			f.Gone(key)
			return nil
		}
	}
	var p payload
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("decode an event of topic %s: %w", topic, err)
	}
	switch {
	case topic == "Evaluation" && p.Evaluation != nil:
		c.evals.done(*p.Evaluation)
		if v.refused(p.Evaluation) {
			f.Changed(v.seen(p.Evaluation.JobID))
		}
	case topic == "Job" && p.Job != nil:
		changed := v.job(p.Job)
		if _, ok := runnerEnvironment(key); ok {
			c.known.note(p.Job) // last: who takes it from there writes into it
		}
		if changed {
			f.Changed(v.seen(key))
		}
	case topic == "Allocation" && p.Allocation != nil && p.Allocation.TaskGroup == mainGroup && index > v.allocsIndex:
		id := p.Allocation.JobID
		if _, ok := runnerEnvironment(id); !ok {
			return nil
		}
		if !v.knows(id) {
			// Its job's event must have been before; look it up rather than lose a runner.
			job, err := c.job(ctx, id)
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			v.job(job)
		}
		if text := v.progress(p.Allocation); text != "" {
			c.log.WithFields(logging.Fields{"runner_id": id, "environment_id": v.seen(id).Env, "progress": text}).Info("a runner is being made ready")
		}
		if v.allocation(p.Allocation) {
			if v.seen(id).State == pool.Ready {
				c.ready(id, p.Allocation)
			}
			f.Changed(v.seen(id))
		}
	}
	return nil
}
