package chaos

import (
	"context"
	"slices"
	"time"

	"rockpool/internal/orchestrator/sim/fabric"
)

// active is a fault that has begun. Its target is a name, whatever the schedule said.
type active struct {
	Fault
	until time.Time
}

// suffer carries a schedule out, and returns when everything is well again.
func (c *cluster) suffer(ctx context.Context, plan Schedule) error {
	var now []active
	for len(plan) > 0 || len(now) > 0 {
		next := time.Now().Add(time.Hour)
		if len(plan) > 0 {
			next = c.begun.Add(plan[0].At)
		}
		for _, a := range now {
			if a.until.Before(next) {
				next = a.until
			}
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			plan, now = nil, nil
		}
		at := time.Now()
		for len(plan) > 0 && !c.begun.Add(plan[0].At).After(at) {
			f := c.resolve(plan[0])
			plan = plan[1:]
			c.tell("%s", f.String()[10:])
			if f.Kind == Transfer {
				c.transfer(f.Target)
				continue
			}
			now = append(now, active{f, at.Add(f.For)})
		}
		now = slices.DeleteFunc(now, func(a active) bool {
			over := !a.until.After(at)
			if over {
				c.tell("over: %s", a.Fault.String()[10:])
			}
			return over
		})
		if err := c.adjust(now); err != nil {
			return err
		}
	}
	return nil
}

// resolve replaces Leader by a name.
func (c *cluster) resolve(f Fault) Fault {
	name := func(s string) string {
		if s != Leader {
			return s
		}
		if l := c.leader(); l != nil {
			return l.name
		}
		return c.servers[int(f.At.Milliseconds())%len(c.servers)].name
	}
	f.Target, f.Peer = name(f.Target), name(f.Peer)
	return f
}

func (c *cluster) transfer(name string) {
	l := c.server(name).now()
	if l == nil {
		return
	}
	c.lives.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.server.Raft().Transfer(ctx, ""); err != nil {
			c.tell("transfer from %s: %v", name, err)
		}
	})
}

// hosts are all that messages go between.
func (c *cluster) hosts() []string {
	out := c.names()
	for _, f := range c.fleets {
		out = append(out, f.host)
	}
	return append(out, clientHosts...)
}

var clientHosts = []string{"c1", "c2"}

// forgotten is how many entries are lost to amnesia.
const forgotten = 100

// adjust makes everything as the faults that are active want it, and well otherwise.
func (c *cluster) adjust(now []active) error {
	c.net.HealAll()
	has := func(target string, kinds ...Kind) (f Fault, ok bool) {
		for _, a := range now {
			if a.Target == target && slices.Contains(kinds, a.Kind) && (!ok || a.By > f.By) {
				f, ok = a.Fault, true
			}
		}
		return f, ok
	}
	for _, a := range now {
		for _, other := range c.hosts() {
			if other == a.Target {
				continue
			}
			switch toPeer := a.Peer == other || a.Peer == Everybody; {
			case a.Kind == Isolate || a.Kind == NodeLoss:
				c.net.Cut(a.Target, other)
				c.net.Cut(other, a.Target)
			case a.Kind == Deaf:
				c.net.Cut(other, a.Target)
			case a.Kind == Cut && toPeer:
				c.net.Cut(a.Target, other)
			case a.Kind == SlowLink && toPeer:
				c.net.Slow(a.Target, other, a.By)
			}
		}
	}
	for _, s := range c.servers {
		_, full := has(s.name, FullDisk)
		slow, _ := has(s.name, SlowDisk)
		jump, _ := has(s.name, ClockJump)
		s.onDisk(func(d *fabric.Disk) {
			d.Fill(full)
			d.Slow(slow.By)
		})
		s.skew.Store(int64(jump.By))
		if f, down := has(s.name, Crash, PowerLoss, Amnesia); down {
			if s.crash(f.Kind == PowerLoss) && f.Kind == Amnesia {
				s.onDisk(func(d *fabric.Disk) { d.Forget(forgotten) })
			}
		} else if err := s.start(); err != nil {
			return err
		}
	}
	for _, f := range c.fleets {
		f.afflict(now)
		if _, down := has(f.host, AgentStart); down {
			f.end()
		} else {
			f.start()
		}
	}
	return nil
}
