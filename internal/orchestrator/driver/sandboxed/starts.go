package sandboxed

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// calm is for how long starts must have left half of the processors before a task that runs gets its interpreter.
const calm = 50 * time.Millisecond

// starts knows how busy the node is with starting tasks, and when there is time for interpreters. Each start wants a processor for nearly all of its time: where more are
// under way than there are processors, they wait for each other, and what one does besides makes all of them later.
type starts struct {
	processors, half int
	turns            chan struct{} // of interpreters of tasks that run already: half of the processors have one each

	mu       sync.Mutex
	underWay int
	busy     time.Time // when they last had half of the processors or more
}

func newStarts() *starts {
	processors := runtime.GOMAXPROCS(0)
	half := max(1, processors/2)
	return &starts{processors: processors, half: half, turns: make(chan struct{}, half)}
}

func (s *starts) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay++
}

func (s *starts) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay >= s.half {
		s.busy = time.Now()
	}
	s.underWay--
}

// crowded reports whether starts have to wait for processors.
func (s *starts) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.underWay > s.processors
}

// wait returns nil when the node has time for an interpreter, and then done must be called. The error is that of ctx.
func (s *starts) wait(ctx context.Context) (done func(), err error) {
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		rest := s.untilCalm()
		if rest <= 0 {
			return func() { <-s.turns }, nil
		}
		pause := time.NewTimer(rest)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			<-s.turns
			return nil, context.Cause(ctx)
		}
	}
}

// untilCalm is how long it will be calm at the earliest; 0 or less: it is.
func (s *starts) untilCalm() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay >= s.half {
		return calm
	}
	return calm - time.Since(s.busy)
}
