package nomad

import (
	"context"
	"fmt"
	"time"

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

// follow is one connection of the feed.
func (c *Client) follow(ctx context.Context, f runner.Feed) error {
	if err := c.probe(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Opened before the listing: whatever the listing lacks comes by event.
	events, err := c.events(ctx, cancel)
	if err != nil {
		return err
	}
	defer events.close()
	view, err := c.listing(ctx)
	if err != nil {
		return err
	}
	if c.listed.Swap(true) && c.opts.Observer != nil {
		c.opts.Observer.EventGap()
	}
	f.All(view.all(), view.jobsIndex)
	for last := uint64(0); ; {
		index, list, err := events.next(ctx)
		switch {
		case err != nil:
			return err
		case index != 0 && index < last:
			// What comes now would be taken for old: a snapshot was restored, or another server answers.
			return fmt.Errorf("the event stream went back from index %d to %d", last, index)
		}
		last = max(last, index)
		c.lag.heard(index, time.Now())
		for i := range list {
			if err := c.event(ctx, view, f, &list[i]); err != nil {
				return err
			}
		}
	}
}

func (c *Client) event(ctx context.Context, v *view, f runner.Feed, ev *event) error {
	topic, kind, key := ev.topic, ev.kind, ev.key
	if c.opts.Observer != nil {
		c.opts.Observer.Event(topic, kind, key, ev.data)
	}
	if id, ok := templateEnvironment(key); ok && topic == "Job" && c.defs.feed != nil {
		return c.defs.event(id, ev)
	}
	if topic == "Job" {
		if _, ok := runnerEnvironment(key); !ok || ev.index <= v.jobsIndex {
			return nil
		}
		if removes(kind) {
			v.forget(key)
			c.known.take(key)
			f.Gone(key)
			return nil
		}
	}
	p, err := ev.payload()
	if err != nil {
		return err
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
			c.known.note(p.Job)
		}
		if changed {
			f.Changed(v.seen(key))
		}
	case topic == "Allocation" && p.Allocation != nil && p.Allocation.TaskGroup == mainGroup && ev.index > v.allocsIndex:
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

// removes reports whether an event of a job tells its end.
func removes(kind string) bool { return kind == "JobDeregistered" || kind == "JobBatchDeregistered" }
