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
	id      string
	network *os.File  // its network namespace, whose end costs the kernel most of a millisecond; nil = it may end with its processes
	due     time.Time // guarded by the runtime's mu
	taken   bool      // somebody is at it; guarded by the runtime's mu

	removing sync.Mutex
	removed  bool // guarded by removing
}

// holdNetwork opens the network namespace of a sandbox that is about to end, if it is its own; nil = it ends with its processes.
func (s *Sandbox) holdNetwork() *os.File {
	if s.runtime.cfg.TidyAfter <= 0 || s.spec.NetNS != "" {
		return nil
	}
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid))
	if err != nil {
		return nil
	}
	return network
}

// close lets the network end.
func (left *remains) close() {
	if left.network != nil {
		_ = left.network.Close()
		left.network = nil
	}
}

// dispose takes away what is left of a sandbox whose processes have ended. Only what is certain to be empty is kept for a while.
func (r *Runtime) dispose(ctx context.Context, left *remains) (kept bool, err error) {
	if _, err := r.group(left.id).kill(ctx); err != nil {
		return false, err
	}
	if r.cfg.TidyAfter <= 0 || !r.group(left.id).vacant() {
		return false, r.wipe(ctx, left.id)
	}
	if err := os.Remove(filepath.Join(r.stateDir(left.id), stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("remove state: %w", err)
	}
	left.due = time.Now().Add(r.cfg.TidyAfter)
	oldest, kept := r.keep(left)
	if !kept {
		return false, r.wipe(ctx, left.id)
	}
	if oldest != nil {
		r.tidyUp(oldest)
	}
	return true, nil
}

// keep has tidy remove it when it is due. oldest is what the caller has to remove now, as too many wait; nil = nothing.
func (r *Runtime) keep(left *remains) (oldest *remains, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false
	}
	r.left = append(r.left, left)
	if !r.tidying {
		r.tidying = true
		r.wg.Go(r.tidy)
	}
	first, waiting := r.waiting()
	if waiting <= mostRemains {
		return nil, true
	}
	first.taken = true
	return first, true
}

// waiting counts those that nobody is at yet, and finds the first that is due. It is called with mu held.
func (r *Runtime) waiting() (first *remains, n int) {
	for _, left := range r.left {
		if left.taken {
			continue
		}
		if n++; first == nil {
			first = left
		}
	}
	return first, n
}

// hurryUp has the remains of two removed: who makes sandboxes is not in the midst of a burst, and where as many are made as end nothing is gained by waiting, but
// the kernel's memory for them would be cold when it is used again.
func (r *Runtime) hurryUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, n := r.waiting(); n == 0 {
		return
	}
	r.hurry += 2
	select {
	case r.wake <- struct{}{}:
	default: // it is about to look
	}
}

// tidy removes what is due, one after the other, until nothing waits, and everything at once when the runtime is closed.
func (r *Runtime) tidy() {
	for {
		r.mu.Lock()
		next, n := r.waiting()
		if n == 0 {
			r.tidying, r.hurry = false, 0
			r.mu.Unlock()
			return
		}
		wait := time.Until(next.due)
		now := r.closed || wait <= 0 || r.hurry > 0
		next.taken = now
		if wait > 0 && r.hurry > 0 {
			r.hurry--
		}
		r.mu.Unlock()
		if now {
			r.tidyUp(next)
			continue
		}
		select {
		case <-time.After(wait):
		case <-r.wake:
		case <-r.closing:
		}
	}
}

// tidyUp removes one, or waits for who does. What cannot be removed is tried again later, at last by the next process of the node.
func (r *Runtime) tidyUp(left *remains) {
	left.removing.Lock()
	defer left.removing.Unlock()
	if left.removed {
		return
	}
	left.close()
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
