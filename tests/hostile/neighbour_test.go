package hostile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// neighbour is a tenant who does nothing wrong: it talks to a cat in a runner of its own, and times every answer.
type neighbour struct {
	session *platform.Session
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu    sync.Mutex
	times []time.Duration // since begin
	sent  time.Time       // of what has not come back yet
	err   error
}

type echoTimes struct {
	p50, p99, max time.Duration
	lost          bool
}

// pace is the pause between two lines, as a learner's keys come at intervals.
const pace = 4 * time.Millisecond

func moveIn(ctx context.Context, s *service.Service) (*neighbour, error) {
	runner, err := s.Claim(ctx, neighbours, time.Hour)
	if err != nil {
		return nil, err
	}
	session, err := s.Start(ctx, runner, platform.Execution{Command: "stty -echo; echo ready; exec cat"})
	if err != nil {
		return nil, err
	}
	n := &neighbour{session: session}
	if err := n.expect(ctx, "ready"); err != nil {
		return nil, err
	}
	ctx, n.cancel = context.WithCancel(ctx)
	n.wg.Go(func() {
		err := n.talk(ctx)
		n.mu.Lock()
		defer n.mu.Unlock()
		if ctx.Err() == nil {
			n.err = err
		}
	})
	return n, nil
}

func (n *neighbour) expect(ctx context.Context, want string) error {
	var seen strings.Builder
	for !strings.Contains(seen.String(), want) {
		m, err := n.session.Next(ctx)
		if err != nil {
			return err
		}
		if m.Type != "start" && m.Type != "stdout" {
			return fmt.Errorf("the neighbour was told %+v", m)
		}
		seen.WriteString(m.Text)
	}
	return nil
}

func (n *neighbour) talk(ctx context.Context) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 0; ; i++ {
		start := time.Now()
		n.mu.Lock()
		n.sent = start
		n.mu.Unlock()
		word := fmt.Sprintf("<%d>", i)
		if err := errors.Join(n.session.Send(word+"\n"), n.expect(ctx, word)); err != nil {
			return err
		}
		n.mu.Lock()
		n.times = append(n.times, time.Since(start))
		n.sent = time.Time{}
		n.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// begin starts a time of observation; its end is a call of what is returned.
func (n *neighbour) begin() func() echoTimes {
	n.mu.Lock()
	n.times = nil
	n.mu.Unlock()
	return func() echoTimes {
		n.mu.Lock()
		defer n.mu.Unlock()
		times := slices.Clone(n.times)
		if !n.sent.IsZero() {
			times = append(times, time.Since(n.sent)) // what still waits has waited that long
		}
		if len(times) == 0 {
			return echoTimes{lost: n.err != nil}
		}
		slices.Sort(times)
		at := func(q float64) time.Duration { return times[int(q*float64(len(times)-1))] }
		return echoTimes{p50: at(0.5), p99: at(0.99), max: times[len(times)-1], lost: n.err != nil}
	}
}

func (n *neighbour) leave() {
	n.cancel()
	n.session.Abort()
	n.wg.Wait()
}
