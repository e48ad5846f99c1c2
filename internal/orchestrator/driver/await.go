package driver

import (
	"context"
	"time"
)

// EndsWithin waits for the end of a task that was asked to end. It gives up after the timeout, or when ctx ends.
func EndsWithin(ctx context.Context, t interface{ Done() <-chan struct{} }, timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-t.Done():
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
