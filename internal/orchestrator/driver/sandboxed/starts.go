package sandboxed

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// calm is how long no task of the node must have been started before one that runs gets its interpreter.
const calm = 50 * time.Millisecond

// starts knows how busy the node is with starting tasks, and when there is time for interpreters. Each start wants a processor for nearly all of its time: where more are
// under way than there are processors, they wait for each other, and what one does besides makes all of them later.
type starts struct {
	turn chan struct{} // held for an interpreter of a task that runs already: there is one at a time

	mu       sync.Mutex
	underWay int
	ended    time.Time // the last one
}

func newStarts() *starts { return &starts{turn: make(chan struct{}, 1)} }

func (s *starts) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay++
}

func (s *starts) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay--
	s.ended = time.Now()
}

// crowded reports whether starts have to wait for processors.
func (s *starts) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.underWay > runtime.GOMAXPROCS(0)
}

// wait returns nil when the node has time for an interpreter, and then done must be called. The error is that of ctx.
func (s *starts) wait(ctx context.Context) (done func(), err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		rest := s.untilCalm()
		if rest <= 0 {
			return func() { <-s.turn }, nil
		}
		pause := time.NewTimer(rest)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			<-s.turn
			return nil, context.Cause(ctx)
		}
	}
}

// untilCalm is how long it will be calm at the earliest; 0 or less: it is.
func (s *starts) untilCalm() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay > 0 {
		return calm
	}
	return calm - time.Since(s.ended)
}
