package api

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatWaitsForRecoveryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := make(chan struct{})
		a := &API{ready: ready, held: make(chan struct{}, 2)}
		a.draining, a.drain = context.WithCancel(t.Context())
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		results := make([]error, 2)
		wg.Go(func() { results[0] = a.admit(ctx) })
		wg.Go(func() { results[1] = a.admit(t.Context()) })
		synctest.Wait()
		if err := a.admit(t.Context()); !errors.Is(err, errRecovering) {
			t.Errorf("one too many: %v", err)
		}
		leave()
		synctest.Wait()
		began := time.Now()
		wg.Wait()
		if !errors.Is(results[0], context.Canceled) {
			t.Errorf("one that left: %v", results[0])
		}
		if !errors.Is(results[1], errRecovering) || time.Since(began) != heldTime {
			t.Errorf("one that waited too long: %v after %v", results[1], time.Since(began))
		}
		wg.Go(func() { results[0] = a.admit(t.Context()) })
		wg.Go(func() { results[1] = a.admit(t.Context()) })
		synctest.Wait()
		close(ready)
		wg.Wait()
		if results[0] != nil || results[1] != nil {
			t.Errorf("after recovery: %v", results)
		}
		a.Drain(t.Context())
		if err := a.admit(t.Context()); !errors.Is(err, errDraining) {
			t.Errorf("while it stops: %v", err)
		}
	})
}

func TestADrainWaitsForWhoIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &API{}
		a.draining, a.drain = context.WithCancel(t.Context())
		a.present.enter()
		a.present.enter()
		began := time.Now()
		time.AfterFunc(time.Second, a.present.leave)
		time.AfterFunc(3*time.Second, a.present.leave)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a.Drain(ctx)
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}
