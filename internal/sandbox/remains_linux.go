//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// mostRemains bounds the ended sandboxes whose groups and directories are still there. The kernel keeps up to some hundred KB for each.
const mostRemains = 256

// remains are the empty control groups and the directory of an ended sandbox. There is no record in it any more, so to a later process of the node it is what
// a creation leaves that was cut short.
type remains struct {
	id  string
	due time.Time // guarded by the runtime's mu, as the next one is
	// taken says that somebody is at it.
	taken bool

	removing sync.Mutex
	removed  bool // guarded by removing
}

// dispose takes away what is left of a sandbox whose processes have ended. Only what is certain to be empty may stay for a while.
func (r *Runtime) dispose(ctx context.Context, id string) error {
	if _, err := r.group(id).kill(ctx); err != nil {
		return err
	}
	if r.cfg.TidyAfter <= 0 || !r.group(id).vacant() {
		return r.wipe(ctx, id)
	}
	if err := os.Remove(filepath.Join(r.stateDir(id), stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	own := &remains{id: id, due: time.Now().Add(r.cfg.TidyAfter)}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return r.wipe(ctx, id)
	}
	r.left = append(r.left, own)
	if !r.tidying {
		r.tidying = true
		r.wg.Go(r.tidy)
	}
	oldest := r.takeOldest(mostRemains)
	r.mu.Unlock()
	if oldest != nil {
		r.tidyUp(oldest)
	}
	return nil
}

// takeOldest picks what to remove next if more than so many wait. It is called with mu held.
func (r *Runtime) takeOldest(most int) *remains {
	var oldest *remains
	waiting := 0
	for _, left := range r.left {
		if left.taken {
			continue
		}
		if waiting++; oldest == nil {
			oldest = left
		}
	}
	if waiting <= most {
		return nil
	}
	oldest.taken = true
	return oldest
}

// tidy removes what is due, one after the other, until nothing waits, and everything at once when the runtime is closed.
func (r *Runtime) tidy() {
	for {
		r.mu.Lock()
		next := r.takeOldest(0)
		if next == nil {
			r.tidying = false
			r.mu.Unlock()
			return
		}
		due := next.due
		r.mu.Unlock()
		select {
		case <-time.After(time.Until(due)):
		case <-r.closing:
		}
		r.tidyUp(next)
	}
}

// tidyUp removes one, or waits for who does. What cannot be removed is tried again later, at last by the next process of the node.
func (r *Runtime) tidyUp(left *remains) {
	left.removing.Lock()
	defer left.removing.Unlock()
	if left.removed {
		return
	}
	err := r.clear(context.Background(), left.id)
	left.removed = err == nil
	if err != nil {
		r.logFor(left.id).WithError(err).Error("what an ended sandbox left cannot be removed")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = slices.DeleteFunc(r.left, func(other *remains) bool { return other == left })
	if err != nil && !r.closed {
		left.taken, left.due = false, time.Now().Add(r.cfg.TidyAfter)
		r.left = append(r.left, left)
	}
}

// remainsOf finds what an ended sandbox of that id left; nil = nothing waits to be removed.
func (r *Runtime) remainsOf(id string) *remains {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, left := range r.left {
		if left.id == id {
			return left
		}
	}
	return nil
}
