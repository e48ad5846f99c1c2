package api

import (
	"context"
	"sync"
	"time"

	"rockpool/internal/fault"
)

// Bounds of the requests that wait for recovery.
const (
	maxHeld  = 4096
	heldTime = time.Minute
)

var (
	errDraining   = fault.New(fault.Unavailable, "the gateway is stopping: send the request to another one, or again in a moment")
	errRecovering = fault.New(fault.Unavailable, "recovery is under way: the cluster's runners and environments are being listed, send the request again in a moment")
)

// admit holds a request back until recovery is done, and refuses it once the gateway is about to stop.
func (a *API) admit(ctx context.Context) error {
	if a.isDraining() {
		return errDraining
	}
	select {
	case <-a.ready:
		return nil
	default:
	}
	select {
	case a.held <- struct{}{}:
		defer func() { <-a.held }()
	default:
		return errRecovering
	}
	t := time.NewTimer(heldTime)
	defer t.Stop()
	select {
	case <-a.ready:
		return nil
	case <-a.draining.Done():
		return errDraining
	case <-t.C:
		return errRecovering
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *API) isDraining() bool {
	return a.draining.Err() != nil
}

// Drain refuses new requests from now on, and returns when all WebSocket sessions have ended or with ctx.
func (a *API) Drain(ctx context.Context) {
	a.drain()
	select {
	case <-a.present.empty():
	case <-ctx.Done():
	}
}

// untilDraining is ctx that also ends when new requests are refused: for requests that only wait.
func (a *API) untilDraining(ctx context.Context) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(a.draining, func() { stop(errDraining) })
	return ctx, func() { unhook(); stop(nil) }
}

// untilStopped is ctx that also ends with the gateway, for that reason.
func (a *API) untilStopped(ctx context.Context) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(a.life, func() { stop(context.Cause(a.life)) })
	return ctx, func() { unhook(); stop(nil) }
}

// attendance counts who is there. The zero value is ready for use.
type attendance struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // somebody waits for it
}

func (a *attendance) enter() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
}

func (a *attendance) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n--; a.n == 0 && a.none != nil {
		close(a.none)
		a.none = nil
	}
}

// empty is closed once nobody is there.
func (a *attendance) empty() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	none := make(chan struct{})
	if a.n == 0 {
		close(none)
	} else {
		a.none = none
	}
	return none
}
