package several

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/tests/platform"
)

const poolSize = 4

func (w *world) provision() {
	w.t.Helper()
	if err := w.PutEnvironment(w.t.Context(), 10, platform.Environment{PrewarmingPoolSize: poolSize, CPULimit: 50, MemoryLimit: 64, Image: "host"}); err != nil {
		w.t.Fatal(err)
	}
}

// settled waits until a gateway shows the pool full and so many runners in use, and the cluster has exactly those.
func (w *world) settled(g *gateway, used uint) {
	w.t.Helper()
	var st platform.Statistics
	w.eventually(20*time.Second, "the pool is full", func() bool {
		all, err := g.Statistics(w.t.Context())
		st = all["10"]
		return err == nil && st.IdleRunners == poolSize && st.UsedRunners == used && len(w.jobs()) == poolSize+int(used)
	})
}

// ledger is what the load was given and saw.
type ledger struct {
	mu      sync.Mutex
	claimed map[string]int
	cycles  int
	refused int // asked while a gateway died
	wrong   []string
}

func (l *ledger) note(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// work claims, copies, runs and releases through the balancer until ctx ends. Errors are for the time around a kill alone; a wrong result is never right.
func (w *world) work(ctx context.Context, l *ledger, excused func() bool) {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		id, err := w.Claim(call, 10, 20*time.Second)
		if err == nil {
			l.note(func() { l.claimed[id]++ })
			err = w.cycle(call, id, l)
		}
		l.note(func() {
			if err == nil {
				l.cycles++
			} else if excused() || strings.Contains(err.Error(), "NOMAD_OVERLOAD") {
				l.refused++
			} else {
				l.wrong = append(l.wrong, err.Error())
			}
		})
		cancel()
	}
}

var errWrong = errors.New("a wrong result")

func (w *world) cycle(ctx context.Context, id string, l *ledger) error {
	if err := w.Copy(ctx, id, nil, platform.File{Path: "who.txt", Content: []byte(id)}); err != nil {
		return err
	}
	out, err := w.Run(ctx, id, platform.Execution{Command: "cat who.txt", TimeLimit: 10})
	if err != nil {
		return err
	}
	if out.Final.Type == "exit" && (out.Final.Code != 0 || !strings.Contains(out.Stdout, id)) {
		l.note(func() {
			l.wrong = append(l.wrong, fmt.Sprintf("%s: exit %d with %q, %q", id, out.Final.Code, out.Stdout, out.Stderr))
		})
		return errWrong
	}
	if out.Final.Type != "exit" {
		return fmt.Errorf("%s ended with %+v", id, out.Final)
	}
	return w.Release(ctx, id)
}

// Kill -9 of the gateway that leads, under load, and its restart: no runner is lost, none is handed out twice, none is doubled, and none lives for ever.
func TestKillNineUnderLoad(t *testing.T) {
	w := newWorld(t)
	a := w.gateway() // the first leads
	b := w.gateway()
	w.provision()
	w.settled(a, 0)
	w.settled(b, 0)

	ctx := t.Context()
	kept, err := a.Claim(ctx, 10, 10*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Copy(ctx, kept, nil, platform.File{Path: "kept.txt", Content: []byte("kept")}); err != nil {
		t.Fatalf("a runner of another gateway: %v", err)
	}
	orphan, err := a.Claim(ctx, 10, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}

	// A session that waits at the one and is connected through the other.
	url, err := a.Execute(ctx, kept, platform.Execution{Command: "sleep 100", TimeLimit: 100})
	if err != nil {
		t.Fatal(err)
	}
	passed, err := b.Connect(ctx, strings.Replace(url, fmt.Sprint(":", a.port, "/"), fmt.Sprint(":", b.port, "/"), 1))
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Abort()

	l := &ledger{claimed: map[string]int{kept: 1, orphan: 1}}
	var killed sync.Map
	excused := func() bool { _, ok := killed.Load("a"); return ok }
	loadCtx, stop := context.WithCancel(ctx)
	var workers sync.WaitGroup
	for range 3 {
		workers.Go(func() { w.work(loadCtx, l, excused) })
	}
	pause(2 * time.Second)
	l.note(func() { t.Logf("before the kill: %d cycles, %d refused", l.cycles, l.refused) })
	killed.Store("a", true)
	// Its last word to this runner is its death.
	if err := b.Copy(ctx, orphan, nil); err != nil {
		t.Errorf("the runner with the short time: %v", err)
	}
	died := time.Now()
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if out, err := passed.Wait(ctx); err != nil || out.Final.Type != "error" || out.Close != 1000 {
		t.Errorf("a session that was passed on to it ended with %+v, %v", out, err)
	}
	if _, err := b.List(ctx, kept, "./", true); err != nil {
		t.Errorf("right after the kill: %v", err)
	}
	w.eventually(20*time.Second, "another gateway leads and has filled the pool", func() bool {
		all, err := b.Statistics(ctx)
		return err == nil && all["10"].IdleRunners > 0 && time.Since(died) > time.Second
	})
	t.Logf("the pool is filled again %v after the kill", time.Since(died).Round(10*time.Millisecond))
	w.eventually(25*time.Second, "the dead gateway's runner has expired", func() bool { return !w.jobs()[orphan] })
	t.Logf("its runner with a timeout of 2 s is gone %v after the kill", time.Since(died).Round(10*time.Millisecond))
	a.start()
	pause(2 * time.Second)
	stop()
	workers.Wait()
	for _, text := range l.wrong {
		t.Error(text)
	}
	for id, n := range l.claimed {
		if n > 1 {
			t.Errorf("%s was handed out %d times", id, n)
		}
	}
	if l.cycles < 20 {
		t.Errorf("only %d cycles went through", l.cycles)
	}
	t.Logf("%d cycles, %d refused, %d runners", l.cycles, l.refused, len(l.claimed))
	out, err := a.Run(ctx, kept, platform.Execution{Command: "cat kept.txt", TimeLimit: 10})
	if err != nil || !strings.Contains(out.Stdout, "kept") {
		t.Errorf("after all: %+v %v", out, err)
	}
	// Runners whose client lost its answer expire; then there are exactly the pool and the one that is kept.
	w.eventually(40*time.Second, "nothing is left over", func() bool { return len(w.jobs()) == poolSize+1 })
	w.settled(a, 1)
	w.settled(b, 1)
	if err := w.DeleteEnvironment(ctx, 10); err != nil {
		t.Error(err)
	}
	w.eventually(10*time.Second, "all runners are gone", func() bool { return len(w.jobs()) == 0 })
}

// pause lets a load run.
func pause(d time.Duration) { <-time.After(d) }
