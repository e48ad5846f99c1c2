package wire

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/nomad/api"
)

// Bounds of a job. They are far above what anybody runs. Beyond them sums of what is asked for would no longer fit into an integer, so that a job could ask
// for less than nothing, or one job's text would cost a server minutes and gigabytes.
const (
	// MaxCount is how many allocations the groups of a job may ask for, all together.
	MaxCount      = 1_000_000
	maxGroups     = 1000
	maxTasks      = 200 // of a group
	maxConditions = 200 // constraints, affinities, spreads and targets of a spread, in one place
	maxPorts      = 1000
	maxDevices    = 1024
	maxAmount     = 100_000_000 // MHz or MB, of one task
	maxName       = 1024        // bytes
	maxText       = 8 << 10     // bytes of a side of a condition, which is held against each node
	// maxGrace is how long a task may take to stop. An order to stop is obeyed within it, whatever the task does.
	maxGrace = time.Hour
	// maxDuration keeps times that are reckoned from now within what an integer of nanoseconds can say.
	maxDuration = 10 * 365 * 24 * time.Hour
)

// bounds checks that a job is none that only somebody who means harm would write.
func (p *Problems) bounds(j *api.Job) {
	p.name("Job ID", val(j.ID))
	p.name("Job name", val(j.Name))
	if len(j.TaskGroups) > maxGroups {
		p.err("A job has at most %d task groups, not %d", maxGroups, len(j.TaskGroups))
		return
	}
	p.number("Job", "constraints, affinities and spreads", len(j.Constraints)+len(j.Affinities)+len(j.Spreads), maxConditions)
	p.number("Job", "datacenters", len(j.Datacenters), maxConditions)
	p.targets("Job", j.Spreads)
	p.texts("Job", j.Constraints, j.Affinities)
	total := 0
	for _, g := range j.TaskGroups {
		n := val(g.Count)
		if n > MaxCount || total > MaxCount-max(n, 0) {
			p.err("The groups of a job may have %d allocations at most, all together", MaxCount)
			return
		}
		total += max(n, 0)
		p.groupBounds(g)
	}
}

func (p *Problems) groupBounds(g *api.TaskGroup) {
	where := fmt.Sprintf("Task group %.64q", val(g.Name))
	p.name(where+": name", val(g.Name))
	p.number(where, "tasks", len(g.Tasks), maxTasks)
	p.number(where, "constraints, affinities and spreads", len(g.Constraints)+len(g.Affinities)+len(g.Spreads), maxConditions)
	p.targets(where, g.Spreads)
	p.texts(where, g.Constraints, g.Affinities)
	if d := g.EphemeralDisk; d != nil {
		p.number(where, "MB of ephemeral disk", val(d.SizeMB), maxAmount)
	}
	p.ports(where, g.Networks)
	p.grace(where, "shutdown_delay", val(g.ShutdownDelay))
	lost, stop := olderDisconnect(g)
	durations := []*time.Duration{g.MaxRunDuration, lost, stop}
	if r := g.RestartPolicy; r != nil {
		durations = append(durations, r.Interval, r.Delay)
	}
	if r := g.ReschedulePolicy; r != nil {
		durations = append(durations, r.Interval, r.Delay, r.MaxDelay)
	}
	if u := g.Update; u != nil {
		durations = append(durations, u.Stagger, u.MinHealthyTime, u.HealthyDeadline, u.ProgressDeadline)
	}
	if m := g.Migrate; m != nil {
		durations = append(durations, m.MinHealthyTime, m.HealthyDeadline)
	}
	if d := g.Disconnect; d != nil {
		durations = append(durations, d.LostAfter, d.StopOnClientAfter)
	}
	p.durations(where, durations...)
	for _, t := range g.Tasks {
		p.taskBounds(where, t)
	}
}

func (p *Problems) taskBounds(group string, t *api.Task) {
	where := fmt.Sprintf("%s, task %.64q", group, t.Name)
	p.name(where+": name", t.Name)
	switch t.Name {
	case ".", "..", "alloc": // its name is that of its directory, beside the one called alloc
		p.err("%s: a task cannot be called %q, which is the name of a directory of its allocation", where, t.Name)
	}
	p.number(where, "constraints and affinities", len(t.Constraints)+len(t.Affinities), maxConditions)
	p.texts(where, t.Constraints, t.Affinities)
	p.grace(where, "kill_timeout", val(t.KillTimeout))
	p.grace(where, "shutdown_delay", t.ShutdownDelay)
	if r := t.RestartPolicy; r != nil {
		p.durations(where, r.Interval, r.Delay)
	}
	if l := t.LogConfig; l != nil {
		p.number(where, "log files", val(l.MaxFiles), maxConditions)
		p.number(where, "MB of a log file", val(l.MaxFileSizeMB), maxAmount)
	}
	r := t.Resources
	if r == nil {
		return
	}
	p.number(where, "MHz of CPU", val(r.CPU), maxAmount)
	p.number(where, "MB of memory", val(r.MemoryMB), maxAmount)
	p.number(where, "MB of memory_max", val(r.MemoryMaxMB), maxAmount)
	p.number(where, "MB of disk", val(r.DiskMB), maxAmount)
	p.number(where, "device requests", len(r.Devices), maxDevices)
	for _, d := range r.Devices {
		if d == nil {
			continue // it is refused elsewhere
		}
		if val(d.Count) > maxDevices {
			p.err("%s: at most %d devices, not %d", where, maxDevices, val(d.Count))
		}
		p.number(where, "constraints and affinities of a device", len(d.Constraints)+len(d.Affinities), maxConditions)
		if slices.Contains(d.Constraints, nil) || slices.Contains(d.Affinities, nil) {
			p.err("%s: a constraint or an affinity of a device is null", where)
		}
		p.texts(where, d.Constraints, d.Affinities)
	}
	p.ports(where, r.Networks)
}

// number refuses more than there may be of something.
func (p *Problems) number(where, what string, n, most int) {
	if n > most {
		p.err("%s: at most %d %s, not %d", where, most, what, n)
	}
}

// name refuses what would be no line of a list.
func (p *Problems) name(what, s string) {
	if len(s) > maxName {
		p.err("%s is longer than %d bytes", what, maxName)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r != 0 && unicode.IsControl(r) }) { // of NUL others speak
		p.err("%s contains a control character", what)
	}
}

// texts refuses conditions that it would take long to hold against a node, such as regular expressions of megabytes.
func (p *Problems) texts(where string, cs []*api.Constraint, as []*api.Affinity) {
	for _, c := range cs {
		if c != nil && len(c.LTarget)+len(c.RTarget) > maxText {
			p.err("%s: a constraint is longer than %d bytes", where, maxText)
		}
	}
	for _, a := range as {
		if a != nil && len(a.LTarget)+len(a.RTarget) > maxText {
			p.err("%s: an affinity is longer than %d bytes", where, maxText)
		}
	}
}

func (p *Problems) targets(where string, spreads []*api.Spread) {
	for _, s := range spreads {
		if s != nil {
			p.number(where, "targets of a spread", len(s.SpreadTarget), maxConditions)
		}
	}
}

func (p *Problems) ports(where string, list []*api.NetworkResource) {
	for _, n := range list {
		if n != nil {
			p.number(where, "ports", len(n.ReservedPorts)+len(n.DynamicPorts), maxPorts)
		}
	}
}

func (p *Problems) grace(where, what string, d time.Duration) {
	if d > maxGrace {
		p.err("%s: %s is at most %v, not %v: nothing may outlive the order to stop for longer", where, what, maxGrace, d)
	}
}

func (p *Problems) durations(where string, all ...*time.Duration) {
	for _, d := range all {
		if d != nil && *d > maxDuration {
			p.err("%s: a duration is at most %v, not %v", where, maxDuration, *d)
		}
	}
}
