package device

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

const (
	// verifyFirst is how long after the first look at what a task has left the second one comes; each pause is twice the one before, up to verifyMost.
	verifyFirst = 50 * time.Millisecond
	verifyMost  = 5 * time.Second
	// verifyWithin is when what a task has left makes its instance unhealthy. It is looked at from time to time all the same.
	verifyWithin = 30 * time.Second
	verifyLater  = 30 * time.Second
	// verifyTimeout bounds one look.
	verifyTimeout = 10 * time.Second
)

// remains is what an instance may still have of its last holder.
type remains struct {
	of    string // the owner that has ended
	since time.Time
	next  time.Time     // of the next look
	pause time.Duration // before the one after that
	why   string        // what the last look has found; "" = there was none yet
	ill   bool          // it has lasted too long
}

func (r *remains) String() string {
	if r.why == "" {
		return fmt.Sprintf("it is not known yet whether task %s has left anything on it", r.of)
	}
	return fmt.Sprintf("task %s has ended and %s", r.of, r.why)
}

// suspect has an instance verified before anybody gets it. The caller holds mu.
func (m *Manager) suspect(id, owner string) {
	now := time.Now()
	m.unverified[id] = &remains{of: owner, since: now, next: now, pause: verifyFirst}
	m.wake()
}

// wake has the newest suspicion looked at. The caller holds mu.
func (m *Manager) wake() {
	select {
	case m.released <- struct{}{}:
	default:
	}
}

// Suspect has instances verified that an owner has held before this process, and nobody holds now. What they were parts of is what Wholes said then.
func (m *Manager) Suspect(owner string, held []model.AllocatedDevice, wholes map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range held {
		for _, id := range d.DeviceIDs {
			if m.holders[id] == "" {
				m.keep(id, wholes[id])
				m.suspect(id, owner)
			}
		}
	}
}

// Await returns when it is verified that nothing of earlier owners is left on the instances. Before it waits, it says for what. What lasts too long is an error of
// kind fault.Unavailable with the reason.
func (m *Manager) Await(ctx context.Context, owner string, held []model.AllocatedDevice, waiting func(text string)) error {
	told := false
	for {
		m.mu.Lock()
		settled := m.settled
		id, r := m.doubted(owner, held)
		var text string
		var err error
		if r != nil {
			if text = fmt.Sprintf("Waiting for device %s: %s", id, r); r.ill {
				err = fault.New(fault.Unavailable, "device %s is unhealthy: %s", id, r)
			}
		}
		m.mu.Unlock()
		if r == nil || err != nil {
			return err
		}
		if !told {
			waiting(text)
			told = true
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// doubted is the first of the instances that is not verified, or that may have something of one that is not, unless the owner holds it already. The caller holds mu.
func (m *Manager) doubted(owner string, held []model.AllocatedDevice) (string, *remains) {
	if len(m.unverified) == 0 {
		return "", nil
	}
	suspects := slices.Sorted(maps.Keys(m.unverified))
	for _, d := range held {
		for _, id := range d.DeviceIDs {
			if m.holders[id] == owner {
				continue
			}
			for _, s := range suspects {
				if m.clash(id, s) {
					return s, m.unverified[s]
				}
			}
		}
	}
	return "", nil
}

// verify looks at what owners have left until ctx ends, and calls changed when that makes an instance unhealthy, or well again.
func (m *Manager) verify(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		m.mu.Lock()
		var due []string
		var next time.Time
		now := time.Now()
		for _, id := range slices.Sorted(maps.Keys(m.unverified)) {
			switch r := m.unverified[id]; {
			case !r.next.After(now):
				due = append(due, id)
			case next.IsZero() || r.next.Before(next):
				next = r.next
			}
		}
		m.mu.Unlock()
		for _, id := range due {
			if m.examine(ctx, id) {
				changed()
			}
		}
		if len(due) > 0 {
			continue
		}
		timer := time.NewTimer(time.Until(next))
		if next.IsZero() {
			timer.Stop()
		}
		select {
		case <-timer.C:
		case <-m.released:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// examine looks at one instance, and reports whether its health has changed.
func (m *Manager) examine(ctx context.Context, id string) (changed bool) {
	m.mu.Lock()
	r, p, gone := m.unverified[id], m.pluginOf(id), m.gone(id)
	m.mu.Unlock()
	if r == nil {
		return false
	}
	var why string
	switch {
	case gone: // what is not there has nothing
	case p == nil:
		why = "the device does not answer, so that nobody knows what is left on it"
	default:
		bounded, cancel := context.WithTimeout(ctx, verifyTimeout)
		err := lifecycle.Guard(func() (err error) {
			why, err = p.Residue(bounded, id)
			return err
		})
		cancel()
		if err != nil {
			why = "it cannot be found out what is left of it: " + err.Error()
		}
	}
	if ctx.Err() != nil {
		return false
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unverified[id] != r { // somebody holds it again, or has ended once more
		return false
	}
	if gone {
		m.inherit(id, r.of)
	}
	if why == "" {
		changed = r.ill || gone && m.wholes[id] != "" // then others can be given again
		if r.ill {
			m.log.WithFields(logging.Fields{"device": id, "task": r.of}).Info("nothing is left on the device any more")
		}
		delete(m.unverified, id)
		delete(m.wholes, id)
		m.settle()
		return changed
	}
	changed = r.ill && r.why != why
	if r.why = why; !r.ill && now.Sub(r.since) >= verifyWithin {
		r.ill, changed = true, true
		m.log.WithFields(logging.Fields{"device": id, "task": r.of, "reason": why}).Warn("a task has left something on its device, which is not offered")
		m.settle()
	}
	r.next, r.pause = now.Add(r.pause), min(2*r.pause, verifyMost)
	if r.ill {
		r.next = now.Add(verifyLater)
	}
	return changed
}

// inherit has verified what is there now of a GPU that was divided differently when the owner held a part of it. The caller holds mu.
func (m *Manager) inherit(id, owner string) {
	whole := m.whole(id)
	for _, r := range m.reports {
		for _, g := range r.Groups {
			for _, in := range g.Instances {
				if (in.Parent == id || in.ID == whole || whole != "" && in.Parent == whole) && m.holders[in.ID] == "" {
					m.suspect(in.ID, owner)
				}
			}
		}
	}
}

// gone reports whether the drivers answer and none has the instance. The caller holds mu.
func (m *Manager) gone(id string) bool {
	if len(m.reports) < len(m.plugins) {
		return false
	}
	for _, r := range m.reports {
		if _, in := r.Instance(id); in != nil || !r.Healthy {
			return false
		}
	}
	return true
}

// settle has everybody look again who waits. The caller holds mu.
func (m *Manager) settle() {
	close(m.settled)
	m.settled = make(chan struct{})
}

// stained marks instances as unhealthy that cannot be given: too much is left on them for too long, or they may be made of what somebody still holds.
func (m *Manager) stained(groups []model.NodeDevice) []model.NodeDevice {
	lost := m.lost()
	out := slices.Clone(groups)
	for i := range out {
		copied := false
		for j, in := range out[i].Instances {
			why := ""
			if r := m.unverified[in.ID]; r != nil && r.ill {
				why = r.String()
			}
			for _, id := range lost {
				if why == "" && m.holders[in.ID] != m.holders[id] && m.clash(in.ID, id) {
					why = fmt.Sprintf("task %s still holds %s, which was a part of the same device and is not there any more", m.holders[id], id)
				}
			}
			if why == "" || !in.Healthy {
				continue
			}
			if !copied {
				out[i].Instances, copied = slices.Clone(out[i].Instances), true
			}
			out[i].Instances[j].Healthy, out[i].Instances[j].HealthDescription = false, why
		}
	}
	return out
}

// lost are the parts that the hardware had made, which are held and not there any more, sorted. Slots that are not there any more are what servers know: their ids say
// whose they are. The caller holds mu.
func (m *Manager) lost() (ids []string) {
	for _, id := range slices.Sorted(maps.Keys(m.wholes)) {
		if _, slot := model.SlotParent(id); !slot && m.holders[id] != "" && m.pluginOf(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
