package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// failoverGoal is within what writes are to be accepted again after a leader's death.
const failoverGoal = 2 * time.Second

func TestNothingAcknowledgedIsLost(t *testing.T) {
	needWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	began := time.Now()
	g := found(t)
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		for _, a := range slices.Concat(g.nodes, g.servers) { // the nodes take what they run with them
			if err := a.stop(); err != nil {
				t.Error(err)
			}
		}
	}
	defer stop()
	defer func() {
		if t.Failed() {
			t.Log(g.logs())
		}
	}()
	if err := g.ready(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: the cluster is ready", time.Since(began).Round(time.Millisecond))
	c := newCrowd(g, "marker-"+rand.Text())
	clients, end := context.WithCancel(ctx)
	defer end()
	var wg, watching sync.WaitGroup
	for i := range 50 {
		m := &member{crowd: c, n: i, rnd: mathrand.New(mathrand.NewPCG(1, uint64(i))), at: i}
		for _, a := range g.servers {
			m.servers = append(m.servers, g.client(a))
		}
		wg.Go(func() { m.run(clients) })
	}
	watch, unwatch := context.WithCancel(ctx)
	defer unwatch()
	watching.Go(func() { c.watch(watch) })

	var gaps []time.Duration
	for _, f := range faults {
		pause(ctx, time.Second)
		gap, err := g.suffer(ctx, f)
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		t.Logf("%v: %s: writes were accepted again after %v", time.Since(began).Round(time.Millisecond), f.name, gap.Round(time.Millisecond))
		if f.death {
			gaps = append(gaps, gap)
		}
	}
	end()
	wg.Wait()
	err := eventually(ctx, 20*time.Second, func() error { return c.judge(ctx, []*api.Client{g.client(g.servers[0])}) })
	if err != nil {
		t.Error(err)
		for _, job := range []string{"c0-", "c1-"} {
			t.Log(g.story(job))
		}
	}
	if err := eventually(ctx, 15*time.Second, g.equal); err != nil {
		t.Error(err)
	}
	unwatch()
	watching.Wait()
	slices.Sort(gaps)
	t.Logf("%v: after a leader's death writes were accepted again within %v (median of %d) and %v (worst)",
		time.Since(began).Round(time.Millisecond), gaps[len(gaps)/2].Round(time.Millisecond), len(gaps), gaps[len(gaps)-1].Round(time.Millisecond))
	t.Logf("the clients: %v; an execution without an answer: %v", c.counts, c.sample)
	// The median: a machine that other programs keep busy may take a second for anything.
	if median := gaps[len(gaps)/2]; median > failoverGoal {
		t.Errorf("after a leader's death no write was accepted for %v", median)
	}
	for _, what := range []string{"registered", "ran", "claimed", "executed", "purged"} {
		if c.counts[what] < 50 {
			t.Errorf("only %d jobs were %s", c.counts[what], what)
		}
	}
	stop()
	left, err := processes(c.marker)
	if err != nil || len(left) > 0 {
		t.Errorf("after the end there still run %v, %v", left, err)
	}
	t.Logf("%v: the end", time.Since(began).Round(time.Millisecond))
}

// fault is one thing that happens to the leader.
type fault struct {
	name  string
	death bool // it counts for the time that a failover takes
	hurt  func(*group, *agent) error
	heal  func(*group, *agent) error
	lasts time.Duration
}

func killed(_ *group, a *agent) error    { return a.kill() }
func restarted(g *group, a *agent) error { return a.begin(g.bin) }

var faults = []fault{
	{name: "the leader is killed", death: true, hurt: killed, heal: restarted, lasts: 2 * time.Second},
	{name: "the leader is cut off", hurt: func(_ *group, a *agent) error { return a.plug(false) }, heal: func(_ *group, a *agent) error { return a.plug(true) }, lasts: 4 * time.Second},
	{name: "the leader is killed once more", death: true, hurt: killed, heal: restarted, lasts: 2 * time.Second},
	{name: "the leader is paused", hurt: func(_ *group, a *agent) error { return a.signal(syscall.SIGSTOP) }, heal: func(_ *group, a *agent) error { return a.signal(syscall.SIGCONT) }, lasts: 4 * time.Second},
	{name: "the leader's disk is full", hurt: func(_ *group, a *agent) error { return a.fill() }, heal: func(g *group, a *agent) error {
		// A server that cannot write any more may have ended; whoever looks after it starts it again.
		return errors.Join(a.empty(), a.begin(g.bin))
	}, lasts: 6 * time.Second},
	{name: "the leader is killed a third time", death: true, hurt: killed, heal: restarted, lasts: 2 * time.Second},
}

// suffer has a fault happen to the leader, and returns how long after it a write was accepted that began later. Then all is well again, and the server has
// caught up.
func (g *group) suffer(ctx context.Context, f fault) (time.Duration, error) {
	leader, err := g.leader(ctx)
	if err != nil {
		return 0, err
	}
	hurt := time.Now()
	if err := f.hurt(g, leader); err != nil {
		return 0, err
	}
	gap, err := g.accepted(ctx, hurt, leader)
	if err != nil {
		return 0, err
	}
	over := time.After(f.lasts - time.Since(hurt))
	if f.death {
		<-over
	}
	select {
	case <-leader.ended():
		if !f.death {
			g.t.Logf("%s: its process ended after %v", f.name, time.Since(hurt).Round(time.Millisecond))
		}
	case <-over:
	}
	if err := f.heal(g, leader); err != nil {
		return 0, err
	}
	return gap, eventually(ctx, 20*time.Second, func() error { return g.caughtUp(leader) })
}

// accepted writes through all servers but that one until a write is acknowledged.
func (g *group) accepted(ctx context.Context, since time.Time, but *agent) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	first := make(chan time.Duration, len(g.servers))
	var wg sync.WaitGroup
	defer wg.Wait()
	stop, end := context.WithCancel(ctx)
	defer end()
	for _, a := range g.servers {
		if a == but {
			continue
		}
		c := g.client(a)
		wg.Go(func() {
			for stop.Err() == nil {
				call, cancel := context.WithTimeout(stop, 500*time.Millisecond)
				_, _, err := c.Operator().SchedulerSetConfiguration(&api.SchedulerConfiguration{SchedulerAlgorithm: "binpack"}, (&api.WriteOptions{}).WithContext(call))
				cancel()
				if err == nil {
					first <- time.Since(since)
					return
				}
				pause(stop, 10*time.Millisecond)
			}
		})
	}
	select {
	case d := <-first:
		return d, nil
	case <-ctx.Done():
		return 0, errors.New("no write is accepted any more")
	}
}

// leader is the server that leads, as most see it.
func (g *group) leader(ctx context.Context) (*agent, error) {
	var leader *agent
	err := eventually(ctx, 20*time.Second, func() error {
		var errs []error
		for _, a := range g.servers {
			at, err := g.client(a).Status().Leader()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, l := range g.servers {
				if strings.HasPrefix(at, l.ip+":") {
					leader = l
					return nil
				}
			}
			errs = append(errs, fmt.Errorf("the leader is said to be at %s", at))
		}
		return errors.Join(errs...)
	})
	return leader, err
}

// ready waits for a leader, all servers and both nodes.
func (g *group) ready(ctx context.Context) error {
	return eventually(ctx, 40*time.Second, func() error {
		for _, a := range g.servers {
			nodes, _, err := g.client(a).Nodes().List(nil)
			if err != nil {
				return err
			}
			ready := 0
			for _, n := range nodes {
				if n.Status == "ready" {
					ready++
				}
			}
			if ready != len(g.nodes) {
				return fmt.Errorf("%d nodes are ready, as %s sees it", ready, a.name)
			}
		}
		return nil
	})
}

// caughtUp asks whether a server has what the leader had when it was asked.
func (g *group) caughtUp(a *agent) error {
	newest := uint64(0)
	for _, s := range g.servers {
		if s != a {
			_, meta, err := g.client(s).Jobs().List(&api.QueryOptions{PerPage: 1})
			if err != nil {
				return err
			}
			newest = max(newest, meta.LastIndex)
		}
	}
	_, meta, err := g.client(a).Jobs().List(&api.QueryOptions{AllowStale: true, PerPage: 1})
	if err != nil {
		return err
	}
	if meta.LastIndex < newest {
		return fmt.Errorf("%s has index %d, the leader %d", a.name, meta.LastIndex, newest)
	}
	return nil
}

// equal compares what the servers have, each asked for its own copy.
func (g *group) equal() error {
	var first, of string
	for _, a := range g.servers {
		jobs, _, err := g.client(a).Jobs().List(&api.QueryOptions{AllowStale: true})
		if err != nil {
			return err
		}
		allocs, _, err := g.client(a).Allocations().List(&api.QueryOptions{AllowStale: true})
		if err != nil {
			return err
		}
		var lines []string
		for _, j := range jobs {
			lines = append(lines, fmt.Sprint(j.ID, j.JobModifyIndex, j.Status))
		}
		for _, a := range allocs {
			lines = append(lines, fmt.Sprint(a.ID, a.JobID, a.NodeID, a.DesiredStatus, a.ClientStatus, a.ModifyIndex))
		}
		text := strings.Join(lines, "\n")
		if of == "" {
			first, of = text, a.name
		}
		if text != first {
			return fmt.Errorf("%s and %s differ", of, a.name)
		}
	}
	return nil
}

// story is what each server says of the jobs that begin so: their evaluations and allocations.
func (g *group) story(prefix string) string {
	var lines []string
	for _, a := range g.servers {
		q := &api.QueryOptions{AllowStale: true}
		evals, _, err := g.client(a).Evaluations().List(q)
		lines = append(lines, fmt.Sprintf("%s: %v", a.name, err))
		for _, e := range evals {
			if strings.HasPrefix(e.JobID, prefix) && e.Status != "complete" {
				lines = append(lines, fmt.Sprintf("  evaluation %s of %s: %s %s %q at %d", e.ID[:8], e.JobID, e.TriggeredBy, e.Status, e.StatusDescription, e.ModifyIndex))
			}
		}
		allocs, meta, err := g.client(a).Allocations().List(q)
		lines = append(lines, fmt.Sprintf("  %v %+v", err, meta))
		for _, l := range allocs {
			if strings.HasPrefix(l.JobID, prefix) {
				lines = append(lines, fmt.Sprintf("  allocation %s of %s: %s %s on %s at %d, created at %d", l.ID[:8], l.JobID, l.DesiredStatus, l.ClientStatus, l.NodeName, l.ModifyIndex, l.CreateIndex))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// eventually asks until there is no error, or the time is over.
func eventually(ctx context.Context, within time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		pause(ctx, 50*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("after %v: %w", within, err)
		}
	}
}

func TestAProcessTooManyIsFound(t *testing.T) {
	marker := "marker-" + rand.Text()
	c := newCrowd(nil, marker)
	var started []*exec.Cmd
	for range 2 {
		cmd := exec.Command("/bin/sh", "-c", "while :; do sleep 1000; done", marker+"/job")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started = append(started, cmd)
		defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() }()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c.watch(ctx)
	if n := c.most["job"]; n != len(started) {
		t.Errorf("%d processes were seen", n)
	}
}
