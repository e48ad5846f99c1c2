package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/tests/platform"
)

// together has n clients repeat what each returns the samples of, for the time of -churn.
func (b *bench) together(ctx context.Context, f figure, n int, client func(ctx context.Context) (step func() error, end func() error, err error)) error {
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	ready, begin := make(chan struct{}, n), make(chan struct{})
	var began time.Time
	for range n {
		g.Go(func() error {
			step, end, err := client(gctx)
			ready <- struct{}{}
			if err != nil {
				return err
			}
			<-begin
			for time.Since(began) < b.churn {
				start := time.Now()
				if err := step(); err != nil {
					return err
				}
				mu.Lock()
				f.samples = append(f.samples, time.Since(start))
				mu.Unlock()
			}
			return end()
		})
	}
	for range n {
		<-ready
	}
	began = time.Now()
	close(begin)
	if err := g.Wait(); err != nil {
		return err
	}
	f.rate = float64(len(f.samples)) / b.churn.Seconds()
	b.add(f)
	return nil
}

// manyExecutions has eight clients run `echo` in a runner each; every output and every exit code is checked.
func manyExecutions(ctx context.Context, b *bench) error {
	const clients = 8
	return b.together(ctx, figure{name: fmt.Sprintf("execute `echo`, %d clients", clients), least: 400}, clients, func(ctx context.Context) (func() error, func() error, error) {
		r, err := b.claim(ctx)
		if err != nil {
			return nil, nil, err
		}
		n := 0
		return func() error {
			n++
			want := fmt.Sprintf("hi %d", n)
			o, err := b.Run(ctx, r, platform.Execution{Command: fmt.Sprintf("echo %s; echo e >&2; exit %d", want, n%200), TimeLimit: 20})
			if err != nil || o.Stdout != want+"\r\n" || strings.TrimSpace(o.Stderr) != "e" || o.Final.Type != "exit" || o.Final.Code != n%200 {
				return fmt.Errorf("echo %s: %+v, %w", want, o, err)
			}
			return nil
		}, func() error { return b.Release(ctx, r) }, nil
	})
}

// manyCycles has six clients do what one submission takes.
func manyCycles(ctx context.Context, b *bench) error {
	const clients = 6
	err := b.together(ctx, figure{name: fmt.Sprintf("cycle, %d clients", clients), least: 60}, clients, func(ctx context.Context) (func() error, func() error, error) {
		return func() error { return b.one(ctx) }, func() error { return nil }, nil
	})
	if err != nil {
		return err
	}
	return b.waitIdle(ctx, pool)
}

// thousandIdle opens executions that wait for input, and looks at what the service needs for them.
func thousandIdle(ctx context.Context, b *bench) error {
	const open, each = 1000, 100
	if b.service == nil {
		return nil
	}
	before, err := resident(b.service.PID())
	if err != nil {
		return err
	}
	var runners []string
	var sessions []*platform.Session
	defer func() {
		for _, s := range sessions {
			s.Abort()
		}
	}()
	for len(sessions) < open {
		r, err := b.claim(ctx)
		if err != nil {
			return err
		}
		runners = append(runners, r)
		for range each {
			s, err := b.Start(ctx, r, platform.Execution{Command: "exec cat"})
			if err != nil {
				return err
			}
			sessions = append(sessions, s)
			if _, err := s.Next(ctx); err != nil {
				return err
			}
		}
	}
	// Each is asked once: it runs, and its answer is its own.
	for i, s := range sessions {
		if err := s.Send(strconv.Itoa(i) + "\n"); err != nil {
			return err
		}
		for got := ""; strings.Count(got, strconv.Itoa(i)+"\r\n") < 2; { // the terminal's echo, and cat's
			m, err := s.Next(ctx)
			if err != nil || m.Type != "stdout" {
				return fmt.Errorf("execution %d: %+v, %w", i, m, err)
			}
			got += m.Text
		}
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	used, err := b.share(ctx, b.churn)
	if err != nil {
		return err
	}
	b.add(figure{name: fmt.Sprintf("CPU of the service, %d idle executions", open), most: 2, value: used, text: fmt.Sprintf("%.2f %% of a core", used)})
	after, err := resident(b.service.PID())
	if err != nil {
		return err
	}
	kb := float64(after-before) / open / 1024
	b.add(figure{name: "resident size of the service, for each of them", most: 100, value: kb, text: fmt.Sprintf("%.0f KB", kb)})
	for _, s := range sessions {
		s.Abort()
	}
	for _, r := range runners {
		if err := b.Release(ctx, r); err != nil {
			return err
		}
	}
	return b.waitIdle(ctx, pool)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// share is the CPU of the service over a time, in percent of a core.
func (b *bench) share(ctx context.Context, d time.Duration) (float64, error) {
	before, err := cpuTime(b.service.PID())
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	after, err := cpuTime(b.service.PID())
	return 100 * (after - before).Seconds() / time.Since(start).Seconds(), err
}

// pacedChurn claims a hundred runners a second and destroys them, from a pool that should never be below half. It is as large as two cores have room for, with those in use.
func pacedChurn(ctx context.Context, b *bench) error {
	const rate, size = 100, 32
	e := platform.Environment{PrewarmingPoolSize: size, CPULimit: 100, MemoryLimit: 128, Image: "host"}
	if err := b.PutEnvironment(ctx, env, e); err != nil {
		return err
	}
	if err := b.waitIdle(ctx, size); err != nil {
		return err
	}
	f := figure{name: fmt.Sprintf("churn at %d a second, pool of %d: claim", rate, size), least: rate * 0.98}
	var mu sync.Mutex
	seen, lowest := map[string]bool{}, uint(size)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	begin := time.Now()
	done := make(chan struct{})
	g.Go(func() error {
		for {
			s, err := b.Statistics(gctx)
			if err != nil {
				return err
			}
			lowest = min(lowest, s[strconv.Itoa(env)].IdleRunners)
			select {
			case <-done:
				return nil
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	for n := 0; time.Since(begin) < b.churn && gctx.Err() == nil; n++ {
		if err := pause(gctx, time.Until(begin.Add(time.Duration(n)*time.Second/rate))); err != nil {
			break
		}
		g.Go(func() error {
			start := time.Now()
			r, err := b.claim(gctx)
			if err != nil {
				return err
			}
			took := time.Since(start)
			mu.Lock()
			again := seen[r]
			seen[r] = true
			f.samples = append(f.samples, took)
			mu.Unlock()
			if again {
				return fmt.Errorf("runner %s was handed out twice", r)
			}
			return b.Release(gctx, r)
		})
	}
	close(done)
	if err := g.Wait(); err != nil {
		return err
	}
	f.rate = float64(len(f.samples)) / time.Since(begin).Seconds()
	b.add(f)
	missing := float64(size-lowest) / size
	b.add(figure{name: "the same: fewest idle runners, and what part was missing at most", most: 0.5, value: missing, text: fmt.Sprintf("%d of %d", lowest, size)})
	e.PrewarmingPoolSize = pool
	if err := b.PutEnvironment(ctx, env, e); err != nil {
		return err
	}
	return b.waitIdle(ctx, pool)
}

// resident is the size of a process in bytes.
func resident(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("the kernel tells no resident size")
}
