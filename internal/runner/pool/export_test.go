package pool

import "fmt"

// Entries is how many runners are remembered, dead ones too.
func (p *Pools) Entries() int { return len(p.runners) }

// Check compares counts and queues with a recount.
func (p *Pools) Check() error {
	held, dying := 0, 0
	for id, r := range p.runners {
		if r.id != id {
			return fmt.Errorf("%s is kept under %s", r.id, id)
		}
		if r.phase == Dead {
			continue
		}
		if r.env.runners[id] != r || p.envs[r.env.id] != r.env {
			return fmt.Errorf("%s: its environment does not know it", id)
		}
		if !r.unborn() {
			held++
		}
		if r.phase == Dying {
			dying++
		}
	}
	if held != p.held || dying != p.dying {
		return fmt.Errorf("%d held and %d dying, counted %d and %d", p.held, p.dying, held, dying)
	}
	for id, e := range p.envs {
		var count [2][phases]int
		failed, blocked, unplaced := 0, 0, [2]int{}
		for _, r := range e.runners {
			if fresh := !r.rolled && r.settings == e.spec.Settings; fresh != r.fresh {
				return fmt.Errorf("%s is counted as fresh=%t", r.id, r.fresh)
			}
			count[kindOf(r.fresh)][r.phase]++
			if r.failed && (r.phase < Idle || r.phase == Dying) {
				failed++
			}
			if r.phase < Idle && !r.placed {
				unplaced[kindOf(r.fresh)]++
			}
			if r.phase == Starting && r.fresh && !r.noRoom.IsZero() {
				blocked++
			}
			if r.placed && !r.noRoom.IsZero() {
				return fmt.Errorf("%s has a place, and there is no room for it", r.id)
			}
		}
		if count != e.count || failed != e.failed {
			return fmt.Errorf("environment %d: counts %v %d, want %v %d", id, e.count, e.failed, count, failed)
		}
		if blocked != e.blocked || unplaced != e.unplaced || len(e.waitingForRoom()) != blocked {
			return fmt.Errorf("environment %d: %d wait for room and %v for a place, want %d and %v", id, e.blocked, e.unplaced, blocked, unplaced)
		}
		if e.wanted && e.spec.Scarce && !p.follow && (blocked > 1 || blocked > 0 && len(e.creates.list) > 0) {
			return fmt.Errorf("environment %d: %d wait for room, and %d are to come", id, blocked, len(e.creates.list))
		}
		for name, q := range map[string]struct {
			got  *queue
			want int
		}{
			"ready": {&e.ready, count[1][Idle]}, "stale": {&e.stale, count[0][Idle]}, "starting": {&e.starting, count[1][Starting]},
			"outdated": {&e.outdated, count[0][Creating] + count[0][Starting]},
		} {
			if len(q.got.list) != q.want {
				return fmt.Errorf("environment %d: %d %s, want %d", id, len(q.got.list), name, q.want)
			}
		}
		for _, q := range []*queue{&e.ready, &e.stale, &e.starting, &e.outdated, &e.creates, &e.repeats, &e.destroys} {
			for i, r := range q.list {
				if r.places[q.lane] != (place{q, i}) {
					return fmt.Errorf("%s does not know its place", r.id)
				}
				if i > 0 && q.less(r, q.list[(i-1)/2]) {
					return fmt.Errorf("%s is out of order", r.id)
				}
			}
		}
		if (e.alarm > 0) != !e.due.IsZero() || (e.alarm > 0 && p.alarms[e.alarm-1] != e) {
			return fmt.Errorf("environment %d: alarm %d for %v", id, e.alarm, e.due)
		}
	}
	return nil
}
