package leader

import (
	"context"
	"sync"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
)

// completions writes the ends of evaluations, many per log entry, and never before the answer to the call that created the
// evaluation has left: a client learns an evaluation's id from that answer, and its end from the event stream.
type completions struct {
	wake chan struct{}   // of 1
	done func(id string) // called when a worker has finished an evaluation

	mu    sync.Mutex
	held  map[string]*model.Evaluation // guarded by mu; value nil = not finished yet
	ready []*model.Evaluation          // guarded by mu
	last  time.Time                    // guarded by mu; when the last one is let go
}

const (
	// A handler that is stuck does not hold an evaluation for ever. One that only waits for its turn on a busy log does, so this is as long as a
	// registration may take.
	holdBound    = 30 * time.Second
	maxCompleted = 512 // in one entry

	// From the answer's last byte written here to its being read there. Who registers many at once reads their answers more slowly.
	// Nobody waits for it: an allocation runs meanwhile, and its node is told of it at once.
	settle     = 10 * time.Millisecond
	settleEach = time.Millisecond // for each other that is held
	settleMost = 500 * time.Millisecond

	// Between two entries with ends, so that those of many evaluations are in one. The first after a pause does not wait.
	spacing = 50 * time.Millisecond
)

func newCompletions(done func(id string)) *completions {
	return &completions{done: done, wake: make(chan struct{}, 1), held: map[string]*model.Evaluation{}}
}

// hold keeps back the end of an evaluation. release lets it go, a moment later when the answer was sent.
func (c *completions) hold(id string) (release func(sent bool)) {
	c.mu.Lock()
	c.held[id] = nil
	c.mu.Unlock()
	bound := time.AfterFunc(holdBound, func() { c.release(id) })
	return func(sent bool) {
		switch {
		case !bound.Stop():
		case sent:
			now := time.Now()
			time.AfterFunc(c.queueUp(now), func() { c.settled(id, now) })
		default:
			c.release(id)
		}
	}
}

// due is when an evaluation may be let go whose answer was written then, as things are now. It is called with mu held.
func (c *completions) due(answered time.Time) time.Time {
	return answered.Add(min(settle+time.Duration(max(len(c.held)-1, 0))*settleEach, settleMost))
}

// queueUp is how long an evaluation stays held whose answer was written now. It is let go no earlier than those before it: the
// last of many callers is as busy as the first.
func (c *completions) queueUp(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if next := c.due(now); next.After(c.last) {
		c.last = next
	}
	return c.last.Sub(now)
}

// settled lets an evaluation go, unless it turned out to be the first of many.
func (c *completions) settled(id string, answered time.Time) {
	c.mu.Lock()
	more := time.Until(c.due(answered))
	c.mu.Unlock()
	if more > 0 {
		time.AfterFunc(more, func() { c.settled(id, answered) })
		return
	}
	c.release(id)
}

func (c *completions) release(id string) {
	c.mu.Lock()
	if e := c.held[id]; e != nil {
		c.ready = append(c.ready, e)
	}
	delete(c.held, id)
	c.mu.Unlock()
	c.signal()
}

func (c *completions) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// finish takes an evaluation that has ended.
func (c *completions) finish(e *model.Evaluation) {
	c.done(e.ID)
	c.mu.Lock()
	if _, ok := c.held[e.ID]; ok {
		c.held[e.ID] = e
	} else {
		c.ready = append(c.ready, e)
	}
	c.mu.Unlock()
	c.signal()
}

func (c *completions) take() []*model.Evaluation {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.ready), maxCompleted)
	batch := c.ready[:n:n]
	c.ready = c.ready[n:]
	return batch
}

// reset forgets what an earlier term has left. It is called before anything of a new one has begun, whose results must not be lost.
func (c *completions) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready = nil
}

// run writes until ctx ends. What a lost leadership leaves unwritten the next term finds pending and finishes again.
func (c *completions) run(ctx context.Context, log Log, logger logging.Logger) error {
	for {
		batch := c.take()
		if len(batch) == 0 {
			select {
			case <-c.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		actx, cancel := context.WithTimeout(ctx, logBound)
		_, _, err := log.Apply(actx, &command.EvalUpdate{Now: time.Now().UnixNano(), Finish: batch})
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			logger.WithField("error", err.Error()).Warn("ends of evaluations will be written again")
			for _, e := range batch {
				c.finish(e)
			}
		}
		select {
		case <-time.After(spacing):
		case <-ctx.Done():
			return nil
		}
	}
}
