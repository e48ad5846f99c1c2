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

// mostRemains bounds the ended sandboxes whose groups and directories are still there, but for those that could not be removed. The kernel keeps up to some hundred KB for each.
const mostRemains = 256

// mostFailed bounds how often the time until the next attempt doubles: up to 12 minutes, from three seconds.
const mostFailed = 8

// remains are the empty control groups and the directory of an ended sandbox. There is no record in it any more, so to a later process of the node it is what
// a creation leaves that was cut short.
type remains struct {
	id      string
	network *os.File  // its network namespace, whose end costs the kernel most of a millisecond; nil = it may end with its processes
	due     time.Time // guarded by the runtime's mu
	taken   bool      // somebody is at it; guarded by the runtime's mu
	failed  int       // how often it could not be removed, up to mostFailed; guarded by the runtime's mu

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

// dispose takes away what is left of a sandbox whose processes have ended, or keeps it for a while. What the kernel still counts a process in is not kept.
// oldest is what the caller has to remove when it has let go of its sandbox, as too many wait; nil = nothing.
func (r *Runtime) dispose(ctx context.Context, left *remains) (kept bool, oldest *remains, err error) {
	if _, err := r.group(left.id).kill(ctx); err != nil {
		return false, nil, err
	}
	if r.cfg.TidyAfter > 0 && r.group(left.id).vacant() {
		if err := os.Remove(filepath.Join(r.stateDir(left.id), stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, nil, fmt.Errorf("remove state: %w", err)
		}
		if oldest, kept = r.keep(left); kept {
			return true, oldest, nil
		}
	}
	return false, nil, r.wipe(ctx, left.id)
}

// keep has tidy remove it when it is due, unless the runtime is closed.
func (r *Runtime) keep(left *remains) (oldest *remains, kept bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false
	}
	r.queue(left)
	_, oldest, n := r.waiting()
	if n <= mostRemains {
		return nil, true
	}
	oldest.taken = true
	return oldest, true
}

// queue puts it behind the others, and has somebody look when it is due. It is called with mu held, while the runtime is open.
func (r *Runtime) queue(left *remains) {
	left.taken, left.due = false, time.Now().Add(r.cfg.TidyAfter<<left.failed)
	r.left = append(r.left, left)
	if r.tidying {
		r.look()
		return
	}
	r.tidying = true
	r.wg.Go(r.tidy)
}

// look has tidy look again at what is due.
func (r *Runtime) look() {
	select {
	case r.wake <- struct{}{}:
	default: // it is about to
	}
}

// waiting finds, among those that nobody is at, the one that is due first, and counts those that have not resisted yet, the oldest of which is fresh. It is
// called with mu held.
func (r *Runtime) waiting() (due, fresh *remains, n int) {
	for _, left := range r.left {
		if left.taken {
			continue
		}
		if due == nil || left.due.Before(due.due) {
			due = left
		}
		if left.failed > 0 {
			continue
		}
		if n++; fresh == nil {
			fresh = left
		}
	}
	return due, fresh, n
}

// hurryUp has the remains of two removed: who makes sandboxes is not in the midst of a burst, and where as many are made as end nothing is gained by waiting, but
// the kernel's memory for them would be cold when it is used again.
func (r *Runtime) hurryUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _, n := r.waiting()
	if n == 0 {
		return
	}
	r.hurry = min(r.hurry+2, n)
	r.look()
}

// tidy removes what is due, one after the other, until nothing waits, and everything at once when the runtime is closed.
func (r *Runtime) tidy() {
	for {
		r.mu.Lock()
		next, fresh, n := r.waiting()
		if next == nil {
			r.tidying, r.hurry = false, 0
			r.mu.Unlock()
			return
		}
		wait := time.Until(next.due)
		now := r.closed || wait <= 0
		if r.hurry = min(r.hurry, n); !now && r.hurry > 0 {
			r.hurry--
			next, now = fresh, true
		}
		next.taken = now
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
	r.mu.Lock()
	by := time.Now().Add(cleanupTimeout)
	if r.closed {
		by = r.closeBy
	}
	r.mu.Unlock()
	ctx, cancel := context.WithDeadline(context.Background(), by)
	err := r.wipe(ctx, left.id)
	cancel()
	left.removed = err == nil
	if err != nil {
		r.logFor(left.id).WithError(err).Error("what an ended sandbox left cannot be removed")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = slices.DeleteFunc(r.left, func(other *remains) bool { return other == left })
	if err != nil && !r.closed {
		left.failed = min(left.failed+1, mostFailed)
		r.queue(left)
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
