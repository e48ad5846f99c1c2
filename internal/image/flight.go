package image

import (
	"context"
	"sync"
)

// flights lets callers that want the same thing at the same time share one piece of work. It goes on as long as one of them
// waits for it, whoever began it. The last to give up cancels it, and waits until nothing of it is left.
type flights[T any] struct {
	// grant is told how many callers get a result, before any of them has it. It may be nil.
	grant func(result T, callers int)
	wg    sync.WaitGroup

	mu      sync.Mutex
	running map[string]*flight[T]
}

type flight[T any] struct {
	cancel  context.CancelFunc
	done    chan struct{}
	meter   meter
	callers int
	over    bool
	result  T
	err     error
}

// do joins the work known by key, or begins it. listen, which may be nil, hears of its progress.
func (f *flights[T]) do(ctx context.Context, key string, listen func(Progress), work func(context.Context, *meter) (T, error)) (T, error) {
	f.mu.Lock()
	w := f.running[key]
	if w == nil {
		var shared context.Context
		w = &flight[T]{done: make(chan struct{})}
		shared, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if f.running == nil {
			f.running = map[string]*flight[T]{}
		}
		f.running[key] = w
		f.wg.Go(func() { f.run(shared, key, w, work) })
	}
	w.callers++
	f.mu.Unlock()
	w.meter.add(listen)
	select {
	case <-w.done:
	case <-ctx.Done():
		left, last := f.leave(key, w)
		if last || !left {
			<-w.done
		}
		if left {
			var none T
			return none, context.Cause(ctx)
		}
	}
	return w.result, w.err
}

// leave gives up waiting. left is false when the result is there already: it was granted, and the caller has to take it.
func (f *flights[T]) leave(key string, w *flight[T]) (left, last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.over {
		return false, false
	}
	if w.callers--; w.callers == 0 {
		w.cancel()
		if f.running[key] == w { // the next caller begins anew
			delete(f.running, key)
		}
	}
	return true, w.callers == 0
}

func (f *flights[T]) run(ctx context.Context, key string, w *flight[T], work func(context.Context, *meter) (T, error)) {
	defer w.cancel()
	telling, stop := context.WithCancel(ctx)
	var teller sync.WaitGroup
	teller.Go(func() { w.meter.tell(telling) })
	w.result, w.err = work(ctx, &w.meter)
	stop()
	teller.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	w.over = true
	if f.running[key] == w {
		delete(f.running, key)
	}
	if w.err == nil && f.grant != nil {
		f.grant(w.result, w.callers)
	}
	close(w.done)
}
