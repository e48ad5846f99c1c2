package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"rockpool/tests/bench/report"
	"rockpool/tests/load"
	"rockpool/tests/meter"
	"rockpool/tests/platform"
)

func environment(size uint) platform.Environment {
	return platform.Environment{PrewarmingPoolSize: size, CPULimit: 100, MemoryLimit: 128, Image: "host"}
}

func provision(ctx context.Context, b *bench) error {
	start := time.Now()
	if err := b.resize(ctx, pool); err != nil {
		return err
	}
	return b.addValue("Fill", float64(time.Since(start))/float64(time.Millisecond))
}

// resize makes the pool as large as that, and waits for it.
func (b *bench) resize(ctx context.Context, size uint) error {
	if err := b.PutEnvironment(ctx, env, environment(size)); err != nil {
		return err
	}
	return b.waitIdle(ctx, size)
}

// waitIdle waits for idle runners.
func (b *bench) waitIdle(ctx context.Context, n uint) error {
	return b.waitIdleOf(ctx, env, n)
}

func (b *bench) waitIdleOf(ctx context.Context, id int, n uint) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second+time.Duration(n)*60*time.Millisecond, errors.New("it takes too long"))
	defer cancel()
	for {
		s, err := b.Statistics(ctx)
		if err != nil {
			return err
		}
		have := s[strconv.Itoa(id)].IdleRunners
		if have >= n {
			return nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("environment %d has %d of %d idle runners: %w", id, have, n, err)
		}
	}
}

func (b *bench) claim(ctx context.Context) (string, error) { return b.claimOf(ctx, env) }

// claimOf takes a runner of an environment, also when its pool is empty for a moment.
func (b *bench) claimOf(ctx context.Context, id int) (string, error) {
	for {
		r, err := b.Claim(ctx, id, 5*time.Minute)
		if e, ok := errors.AsType[*platform.StatusError](err); ok && e.Status == 500 && strings.Contains(e.Body, "NOMAD_OVERLOAD") {
			if err := b.waitIdleOf(ctx, id, 1); err != nil {
				return "", err
			}
			continue
		}
		if err == nil {
			err = b.once(r)
		}
		return r, err
	}
}

func claimAndDestroy(ctx context.Context, b *bench) error {
	var claims, destroys load.Samples
	begin := time.Now()
	for claims.Len() < b.n {
		var mine []string
		for range pool / 2 {
			start := time.Now()
			r, err := b.Claim(ctx, env, time.Minute)
			if err != nil {
				return err
			}
			claims.Since(start)
			if err := b.once(r); err != nil {
				return err
			}
			mine = append(mine, r)
			if err := b.waitIdle(ctx, pool); err != nil { // so that the refill is not measured with the claim
				return err
			}
		}
		for _, r := range mine {
			start := time.Now()
			if err := b.Release(ctx, r); err != nil {
				return err
			}
			destroys.Since(start)
		}
	}
	return errors.Join(b.addCalls("Claim", begin, &claims), b.addCalls("Destroy", begin, &destroys))
}

func insideOneRunner(ctx context.Context, b *bench) error {
	r, err := b.claim(ctx)
	if err != nil {
		return err
	}
	var upload, first, whole load.Samples
	begin := time.Now()
	content := []byte(strings.Repeat("print('hello')\n", 140))
	for range b.n {
		start := time.Now()
		if err := b.Copy(ctx, r, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "main.py", Content: content}); err != nil {
			return err
		}
		upload.Since(start)
	}
	if got, err := b.Download(ctx, r, "main.py"); err != nil || string(got) != string(content) {
		return fmt.Errorf("what was uploaded comes back as %d bytes, %v", len(got), err)
	}
	for range b.n {
		start := time.Now()
		byteAt, err := b.echo(ctx, r)
		if err != nil {
			return err
		}
		whole.Since(start)
		first.Add(load.Sample{End: byteAt, Took: byteAt.Sub(start)})
	}
	trips, err := b.roundTrips(ctx, r, 3*b.n)
	if err != nil {
		return err
	}
	return errors.Join(b.addCalls("Upload", begin, &upload), b.addCalls("EchoFirstByte", begin, &first), b.addCalls("Echo", begin, &whole),
		b.addCalls("StdinRoundTrip", begin, trips), b.Release(ctx, r))
}

// echo runs `echo hi` and returns when its first byte came.
func (b *bench) echo(ctx context.Context, runner string) (first time.Time, err error) {
	s, err := b.Start(ctx, runner, platform.Execution{Command: "echo hi", TimeLimit: 20})
	if err != nil {
		return first, err
	}
	defer s.Abort()
	o, err := s.WaitFunc(ctx, func(m platform.Message) {
		if m.Type == "stdout" && first.IsZero() {
			first = m.At
		}
	})
	if err != nil || o.Stdout != "hi\r\n" || o.Stderr != "" || o.Final.Type != "exit" || o.Final.Code != 0 {
		return first, fmt.Errorf("echo hi: %+v, %v", o, err)
	}
	return first, nil
}

// roundTrips measures from a line sent to the program's own answer, with the terminal's echo off.
func (b *bench) roundTrips(ctx context.Context, runner string, n int) (*load.Samples, error) {
	s, err := b.Start(ctx, runner, platform.Execution{Command: "stty -echo; echo ready; exec cat"})
	if err != nil {
		return nil, err
	}
	defer s.Abort()
	wait := func(want string) error {
		seen := ""
		for !strings.HasSuffix(seen, want+"\r\n") {
			m, err := s.Next(ctx)
			if err != nil {
				return err
			}
			seen += m.Text
		}
		return nil
	}
	if err := wait("ready"); err != nil {
		return nil, err
	}
	var trips load.Samples
	for i := range n {
		line := strconv.Itoa(i)
		start := time.Now()
		if err := s.Send(line + "\n"); err != nil {
			return nil, err
		}
		if err := wait(line); err != nil {
			return nil, err
		}
		trips.Since(start)
	}
	return &trips, nil
}

// manyExecutions has several runners execute `echo`; every output, every stderr and every exit code is checked.
func manyExecutions(ctx context.Context, b *bench) error {
	join := func(ctx context.Context) (client, error) {
		r, err := b.claim(ctx)
		var n atomic.Int64
		return client{
			step: func(ctx context.Context) error {
				i := int(n.Add(1))
				want := fmt.Sprintf("hi %d", i)
				o, err := b.Run(ctx, r, platform.Execution{Command: fmt.Sprintf("echo %s; echo e >&2; exit %d", want, i%200), TimeLimit: 20})
				if err != nil || o.Stdout != want+"\r\n" || strings.TrimSpace(o.Stderr) != "e" || o.Final.Type != "exit" || o.Final.Code != i%200 {
					return fmt.Errorf("echo %s: %+v, %v", want, o, err)
				}
				return nil
			},
			leave: func(ctx context.Context) error { return b.Release(ctx, r) },
		}, err
	}
	err := joined(ctx, clientsOfEcho, join, func(c []client) error {
		return errors.Join(b.offered(ctx, "EchoOffered", more*echoRate, c), b.inARow(ctx, "EchoMost", c))
	})
	return errors.Join(err, b.waitIdle(ctx, pool))
}

func cycle(ctx context.Context, b *bench) error {
	var calls load.Samples
	begin := time.Now()
	for range b.n / 2 {
		start := time.Now()
		if err := b.one(ctx); err != nil {
			return err
		}
		calls.Since(start)
	}
	return b.addCalls("Cycle", begin, &calls)
}

func (b *bench) one(ctx context.Context) error { return b.cycleIn(ctx, env) }

// cycleIn is what a platform does for one submission.
func (b *bench) cycleIn(ctx context.Context, id int) error {
	r, err := b.claimOf(ctx, id)
	if err != nil {
		return err
	}
	if err := b.Copy(ctx, r, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "hello.py", Content: []byte("print('hello')\n")}); err != nil {
		return err
	}
	o, err := b.Run(ctx, r, platform.Execution{Command: "python3 hello.py", TimeLimit: 20})
	if err != nil || o.Stdout != "hello\r\n" || o.Stderr != "" || o.Final.Type != "exit" || o.Final.Code != 0 {
		return fmt.Errorf("python3 hello.py: %+v, %v", o, err)
	}
	if files, err := b.List(ctx, r, "./", true); err != nil || len(files) != 1 {
		return fmt.Errorf("the listing is %+v, %v", files, err)
	}
	return b.Release(ctx, r)
}

func manyCycles(ctx context.Context, b *bench) error {
	join := func(context.Context) (client, error) { return client{step: b.one}, nil }
	err := joined(ctx, clientsOfCycle, join, func(c []client) error {
		if err := b.offered(ctx, "CycleOffered", more*cycleRate, c); err != nil {
			return err
		}
		if err := b.waitIdle(ctx, pool); err != nil {
			return err
		}
		return b.inARow(ctx, "CycleMost", c)
	})
	return errors.Join(err, b.waitIdle(ctx, pool))
}

// claimed takes a runner and gives it back.
func (b *bench) claimed(ctx context.Context) error {
	r, err := b.claim(ctx)
	if err != nil {
		return err
	}
	return b.Release(ctx, r)
}

// churn claims and destroys runners as fast as four clients can.
func churn(ctx context.Context, b *bench) error {
	join := func(context.Context) (client, error) { return client{step: b.claimed}, nil }
	err := joined(ctx, 4, join, func(c []client) error { return b.inARow(ctx, "ChurnMost", c) })
	return errors.Join(err, b.waitIdle(ctx, pool))
}

// pacedChurn claims runners at a rate and destroys each at once, from a pool that should never be below half. It is as large as two cores have room for, with
// those in use.
func pacedChurn(ctx context.Context, b *bench) (err error) {
	if err := b.resize(ctx, churnPool); err != nil {
		return err
	}
	lowest := uint(churnPool)
	watching, stop := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() {
		watched <- func() error {
			for {
				s, err := b.Statistics(ctx)
				if err != nil {
					return err
				}
				lowest = min(lowest, s[strconv.Itoa(env)].IdleRunners)
				if pause(watching, 10*time.Millisecond) != nil {
					return nil
				}
			}
		}()
	}()
	join := func(context.Context) (client, error) { return client{step: b.claimed}, nil }
	err = joined(ctx, 64, join, func(c []client) error { return b.offered(ctx, "ChurnOffered", more*churnRate, c) })
	stop()
	if err = errors.Join(err, <-watched); err != nil {
		return err
	}
	return errors.Join(b.addValue("ChurnIdle", float64(lowest)), b.resize(ctx, pool))
}

// idleRunners looks at what a pool costs that nobody uses.
func idleRunners(ctx context.Context, b *bench) error {
	used, err := b.share(ctx, b.during)
	if err != nil {
		return err
	}
	return b.addValue("IdleRunnersCPU", used)
}

// share is the CPU of the service over a time, in percent of a core.
func (b *bench) share(ctx context.Context, d time.Duration) (float64, error) {
	before, err := meter.CPU(b.service.PID())
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	after, err := meter.CPU(b.service.PID())
	return 100 * (after - before).Seconds() / time.Since(start).Seconds(), err
}

// waiting opens executions that wait for input, a hundred in each runner, and asks each once: it runs, and its answer is its own.
func (b *bench) waiting(ctx context.Context, n int) (leave func() error, err error) {
	var runners []string
	var sessions []*platform.Session
	leave = func() error {
		for _, s := range sessions {
			s.Abort()
		}
		var errs []error
		for _, r := range runners {
			errs = append(errs, b.Release(ctx, r))
		}
		return errors.Join(errs...)
	}
	for i := range n {
		if i%100 == 0 {
			r, err := b.claim(ctx)
			if err != nil {
				return leave, err
			}
			runners = append(runners, r)
		}
		s, err := b.Start(ctx, runners[len(runners)-1], platform.Execution{Command: "exec cat"})
		if err != nil {
			return leave, err
		}
		sessions = append(sessions, s)
		if _, err := s.Next(ctx); err != nil {
			return leave, err
		}
	}
	for i, s := range sessions {
		if err := s.Send(strconv.Itoa(i) + "\n"); err != nil {
			return leave, err
		}
		for got := ""; strings.Count(got, strconv.Itoa(i)+"\r\n") < 2; { // the terminal's echo, and cat's
			m, err := s.Next(ctx)
			if err != nil || m.Type != "stdout" {
				return leave, fmt.Errorf("execution %d: %+v, %v", i, m, err)
			}
			got += m.Text
		}
	}
	return leave, nil
}

// thousandIdle looks at what the service needs for many executions that wait.
func thousandIdle(ctx context.Context, b *bench) error {
	before, err := meter.Resident(b.service.PID())
	if err != nil {
		return err
	}
	leave, err := b.waiting(ctx, idleExecutions)
	if err == nil {
		err = func() error {
			if err := pause(ctx, 2*time.Second); err != nil {
				return err
			}
			used, err := b.share(ctx, b.during)
			if err != nil {
				return err
			}
			after, err := meter.Resident(b.service.PID())
			if err != nil {
				return err
			}
			return errors.Join(b.addValue("IdleExecutionsCPU", used), b.add("IdleExecutionMemory", report.Measurement{Value: float64(after-before) / idleExecutions / 1024}))
		}()
	}
	return errors.Join(err, leave(), b.waitIdle(ctx, pool))
}
