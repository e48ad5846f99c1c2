// Package load makes calls at a given rate and says what they took. The load is open: a call begins when it is due, whether or not earlier ones have
// been answered, and its time counts from then, so that a server that stalls does not slow its own measurement down.
package load

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Options of a load.
type Options struct {
	Rate    float64       // calls a second
	For     time.Duration // how long calls begin
	AtATime int           // calls under way at most; beyond that they begin late, and their time says so. Default 1,024.
}

// Run makes the calls: call gets a number from 0 and the time at which it was due. It returns when the last call has, and the first error ends it.
func Run(ctx context.Context, o Options, call func(ctx context.Context, i int, due time.Time) error) (n int, err error) {
	if o.AtATime == 0 {
		o.AtATime = 1024
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, o.AtATime)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := 0; ; i++ {
		due := begin.Add(time.Duration(float64(i) / o.Rate * float64(time.Second)))
		if due.Sub(begin) >= o.For || !until(ctx, due) {
			n = i
			break
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := call(ctx, i, due); err != nil {
				cancel(fmt.Errorf("call %d: %w", i, err))
			}
		})
	}
	wg.Wait()
	return n, context.Cause(ctx)
}

func until(ctx context.Context, due time.Time) bool {
	if d := time.Until(due); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// Percentile is that of samples by the nearest rank, p from 1 to 100; 0 when there are none.
func Percentile(samples []time.Duration, p int) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[min(len(s)-1, (len(s)*p+99)/100-1)]
}
