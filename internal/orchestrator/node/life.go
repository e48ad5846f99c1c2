package node

import (
	"rockpool/internal/orchestrator/model"
)

// phase is when in the life of an allocation a task runs.
type phase int

const (
	phaseMain      phase = iota
	phasePrestart        // to its end before the main tasks start
	phasePreside         // from before the main tasks start until they have ended
	phasePoststart       // once the main tasks run
	phasePostside        // once the main tasks run, until they have ended
	phasePoststop        // once all others have ended, however they did
)

func phaseOf(t *model.Task) phase {
	l := t.Lifecycle
	switch {
	case l == nil:
		return phaseMain
	case l.Hook == model.HookPrestart && l.Sidecar:
		return phasePreside
	case l.Hook == model.HookPrestart:
		return phasePrestart
	case l.Hook == model.HookPoststart && l.Sidecar:
		return phasePostside
	case l.Hook == model.HookPoststart:
		return phasePoststart
	case l.Hook == model.HookPoststop:
		return phasePoststop
	}
	return phaseMain
}

func (p phase) sidecar() bool { return p == phasePreside || p == phasePostside }

// endsByItself reports whether a task is done when its process returned 0: those that run beside the main ones to an end, and all of batch jobs but sidecars.
func (p phase) endsByItself(jobType string) bool {
	switch p {
	case phasePrestart, phasePoststart, phasePoststop:
		return true
	case phasePreside, phasePostside:
		return false
	}
	return endsWithSuccess(jobType)
}

// part is what the order of an allocation's life depends on of one task.
type part struct {
	phase phase
	state *model.TaskState
}

// order is what may start, and what must end, in an allocation whose tasks are as parts say.
type order struct {
	start   []string // these may run now; those that do already are named too
	release []string // sidecars whose main tasks have all ended
}

// decide is the rule of the hooks. It depends on nothing but its argument.
func decide(parts map[string]part) order {
	ready, running, over, others := true, true, true, true
	mains := 0
	for _, p := range parts {
		dead := p.state.State == model.TaskDead
		up := p.state.State == model.TaskRunning
		if p.phase != phasePoststop && !dead {
			others = false
		}
		switch p.phase {
		case phaseMain:
			mains++
			running = running && (up || dead)
			over = over && dead
		case phasePrestart:
			ready = ready && dead && !p.state.Failed
		case phasePreside:
			ready = ready && (up || dead && !p.state.Failed)
		}
	}
	if mains == 0 {
		running, over = ready, false
	}
	var o order
	for name, p := range parts {
		may := false
		switch p.phase {
		case phasePrestart, phasePreside:
			may = true
		case phaseMain:
			may = ready
		case phasePoststart, phasePostside:
			may = ready && running
		case phasePoststop:
			may = others
		}
		if may {
			o.start = append(o.start, name)
		}
		if p.phase.sidecar() && over && p.state.State != model.TaskDead {
			o.release = append(o.release, name)
		}
	}
	return o
}
