package load

import (
	"slices"
	"sync"
	"time"
)

// Sample is one call.
type Sample struct {
	End  time.Time // it had its answer
	Took time.Duration
}

// Samples collects calls from many goroutines. The zero value is ready for use.
type Samples struct {
	mu   sync.Mutex
	list []Sample // guarded by mu
}

// Since adds a call that was due or began at a time and ends now.
func (s *Samples) Since(begin time.Time) {
	now := time.Now()
	s.Add(Sample{now, now.Sub(begin)})
}

// Add adds a call.
func (s *Samples) Add(x Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, x)
}

// Len is the number of calls so far.
func (s *Samples) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

// Sorted are the calls so far in the order of their ends.
func (s *Samples) Sorted() []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(slices.Values(s.list), func(a, b Sample) int { return a.End.Compare(b.End) })
}

// Times are what calls took.
func Times(list []Sample) []time.Duration {
	times := make([]time.Duration, len(list))
	for i, s := range list {
		times[i] = s.Took
	}
	return times
}

// Answered is the rate of answers while calls were made, without the first tenth, in which hardly any can have come yet, and without those that came after the
// last call was due: a server that falls behind answers fewer in that time than were asked for.
func Answered(list []Sample, begin time.Time, during time.Duration) float64 {
	from, to := begin.Add(during/10), begin.Add(during)
	n := 0
	for _, c := range list {
		if c.End.After(from) && !c.End.After(to) {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}
