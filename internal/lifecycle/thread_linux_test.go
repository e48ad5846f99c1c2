package lifecycle_test

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/lifecycle"
)

func TestWhatChangesAThreadNeverHasTheFirst(t *testing.T) {
	var mu sync.Mutex
	seen := map[int]bool{}
	var all sync.WaitGroup
	for range 64 { // more goroutines than threads: the first thread is offered to some
		all.Go(func() {
			err := lifecycle.OnOwnThread(func() error {
				mu.Lock()
				defer mu.Unlock()
				seen[unix.Gettid()] = true
				return unix.Prctl(unix.PR_SET_NAME, 0, 0, 0, 0)
			})
			if !errors.Is(err, unix.EFAULT) {
				t.Errorf("the error of what ran there: %v", err)
			}
		})
	}
	all.Wait()
	if seen[unix.Getpid()] || len(seen) == 0 {
		t.Errorf("it ran on threads %v of process %d", seen, unix.Getpid())
	}
}
