package leader_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
)

// elect runs a leader in a bubble until stop.
func elect(t *testing.T, cfg leader.Config) (ld *leader.Leader, stop func()) {
	t.Helper()
	ld = leader.New(cfg)
	signal := make(chan bool, 1)
	signal <- true
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := ld.Run(ctx, signal); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return ld, func() { cancel(); wg.Wait() }
}

func (l *log) do(t *testing.T, entry any) any {
	t.Helper()
	r, _, err := l.Apply(context.Background(), entry)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (l *log) join(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		node := readyNode()
		node.ID = fmt.Sprintf("n%03d", i)
		l.do(t, &command.NodeRegister{Now: time.Now().UnixNano(), Node: node})
	}
}

func (l *log) count(status string) int {
	n := 0
	for node := range l.store.Snapshot().Nodes(nil, "") {
		if node.Status == status {
			n++
		}
	}
	return n
}

func TestTheTTLFollowsTheSizeOfTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		ld, stop := elect(t, leader.Config{Store: l.store, Log: l})
		defer stop()
		l.join(t, 1)
		if ttl := ld.Heartbeat("n000"); ttl < 10*time.Second || ttl > 15*time.Second {
			t.Errorf("of one node it is %v", ttl)
		}
		l.join(t, 1000)
		least, most := time.Hour, time.Duration(0)
		for i := range 1000 {
			ttl := ld.Heartbeat(fmt.Sprintf("n%03d", i))
			least, most = min(least, ttl), max(most, ttl)
		}
		if least < 20*time.Second || most > 30*time.Second || most-least < 5*time.Second {
			t.Errorf("of a thousand nodes it is %v to %v: fifty a second want 20 s and a spread", least, most)
		}
	})
}

func TestManyNodesAreNotLostAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		_, stop := elect(t, leader.Config{Store: l.store, Log: l})
		defer stop()
		l.join(t, 200)
		time.Sleep(40 * time.Second) // all of them have been silent for too long since about 15 s
		synctest.Wait()
		if n := l.count(model.NodeDown); n < 20 || n > 30 {
			t.Errorf("%d of 200 nodes are down at once: a tenth in a minute was meant", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := l.count(model.NodeDown); n < 35 || n > 50 {
			t.Errorf("%d of 200 nodes are down a minute later", n)
		}
	})
}

// prober answers for nodes that live.
type prober struct {
	mu    sync.Mutex
	alive map[string]bool
	asked int
}

func (p *prober) Probe(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.alive[id] {
		return nil
	}
	return errors.New("no connection")
}

func TestANodeThatAnswersIsNotDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		p := &prober{alive: map[string]bool{"n000": true}}
		_, stop := elect(t, leader.Config{Store: l.store, Log: l, Prober: p})
		defer stop()
		l.join(t, 2)
		time.Sleep(time.Minute)
		synctest.Wait()
		s := l.store.Snapshot()
		if a, b := s.Node(nil, "n000").Status, s.Node(nil, "n001").Status; a != model.NodeReady || b != model.NodeDown || p.asked < 3 {
			t.Errorf("the node that answers is %s, the other one %s, %d were asked", a, b, p.asked)
		}
	})
}

// run puts an allocation of a job onto a node.
func (l *log) run(t *testing.T, j *model.Job, node, id string) {
	t.Helper()
	l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
	l.place(t, j, node, id, "")
}

func TestANodeThatIsCutOffIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		ld, stop := elect(t, leader.Config{Store: l.store, Log: l})
		defer stop()
		l.join(t, 1)
		j := batch("patient")
		j.TaskGroups[0].Disconnect = &model.DisconnectPolicy{LostAfter: 5 * time.Minute}
		l.run(t, j, "n000", "a1")
		status := func() string { return l.store.Snapshot().Node(nil, "n000").Status }
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if status() != model.NodeDisconnected {
			t.Fatalf("it is %s", status())
		}
		waits := 0
		for e := range l.store.Snapshot().Evals(nil, "") {
			if e.TriggeredBy == model.TriggerDisconnect && e.WaitUntil > time.Now().Add(4*time.Minute).UnixNano() {
				waits++
			}
		}
		if waits == 0 {
			t.Error("nobody looks when the time is over")
		}
		// It comes back, and is cut off again: the time starts afresh.
		l.do(t, &command.NodeStatus{Now: time.Now().UnixNano(), NodeID: "n000", Status: model.NodeReady})
		ld.Heartbeat("n000")
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if status() != model.NodeDisconnected {
			t.Errorf("within the time it is %s", status())
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if status() != model.NodeDown {
			t.Errorf("after it, it is %s", status())
		}
	})
}

func TestANewLeaderKnowsWhoWasSilentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		cfg := leader.Config{Store: l.store, Log: l, HeartbeatTTL: time.Minute, Grace: time.Minute}
		ld, stop := elect(t, cfg)
		l.join(t, 2)
		for range 4 {
			time.Sleep(28 * time.Second)
			ld.Heartbeat("n001")
		}
		synctest.Wait()
		silent := 0
		for n := range l.store.Snapshot().SilentNodes() {
			if silent++; n.NodeID != "n000" {
				t.Errorf("%s is taken for silent", n.NodeID)
			}
		}
		if silent != 1 {
			t.Fatalf("%d nodes are known to be silent", silent)
		}
		stop()
		ld, stop = elect(t, cfg)
		defer stop()
		time.Sleep(62 * time.Second) // the grace alone
		ld.Heartbeat("n001")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		s := l.store.Snapshot()
		if a, b := s.Node(nil, "n000").Status, s.Node(nil, "n001").Status; a != model.NodeDown || b != model.NodeReady {
			t.Errorf("the silent one is %s, the other %s", a, b)
		}
	})
}
