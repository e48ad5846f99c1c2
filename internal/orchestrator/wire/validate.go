package wire

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/network/egress"
	"rockpool/internal/orchestrator/sched"
)

// Problems are the errors of a completed job, all of them, and what is ignored in it.
type Problems struct {
	Errors   []string
	Warnings []string
}

// Text is the errors in the form that Nomad's clients print.
func (p *Problems) Text() string { return list(p.Errors, "error") }

// WarningText is the warnings alike; empty when there are none.
func (p *Problems) WarningText() string {
	if len(p.Warnings) == 0 {
		return ""
	}
	return list(p.Warnings, "warning")
}

func list(lines []string, what string) string {
	s := "s"
	if len(lines) == 1 {
		s = ""
	}
	return fmt.Sprintf("%d %s%s occurred:\n\t* %s\n\n", len(lines), what, s, strings.Join(lines, "\n\t* "))
}

func (p *Problems) err(format string, args ...any) {
	p.Errors = append(p.Errors, fmt.Sprintf(format, args...))
}

func (p *Problems) ignored(what, where string) {
	p.Warnings = append(p.Warnings, fmt.Sprintf("%s of %s is ignored by Rockpool", what, where))
}

// Validate checks a completed job.
func Validate(j *api.Job) *Problems {
	p := &Problems{}
	if p.bounds(j); len(p.Errors) > 0 {
		return p // of such a job nothing else is looked at
	}
	id := val(j.ID)
	switch {
	case id == "":
		p.err("Missing job ID")
	case strings.ContainsAny(id, " \x00"):
		p.err("Job ID contains a space or null character")
	}
	if name := val(j.Name); name == "" {
		p.err("Missing job name")
	} else if strings.ContainsRune(name, 0) {
		p.err("Job Name contains a null character")
	}
	if ns := val(j.Namespace); ns == "" || strings.ContainsAny(ns, "*\x00") {
		p.err("Job must be in a namespace, not in %q", ns)
	}
	if n := val(j.Priority); n < 1 || n > 100 {
		p.err("Job priority must be between [1, 100], not %d", n)
	}
	switch t := val(j.Type); t {
	case model.JobTypeBatch, model.JobTypeService, model.JobTypeSystem, model.JobTypeSysbatch:
	default:
		p.err("Invalid job type: %q", t)
	}
	if r := val(j.Region); r != "" && r != "global" {
		p.err("Region %q is not known, there is only \"global\"", r)
	}
	for _, dc := range j.Datacenters {
		if _, err := path.Match(dc, ""); err != nil || dc == "" {
			p.err("Datacenter %q is not a name or pattern", dc)
		}
	}
	p.templates(j)
	if j.Multiregion != nil {
		p.err("Multiregion jobs are not supported by Rockpool")
	}
	if len(j.TaskGroups) == 0 {
		p.err("Missing job task groups")
	}
	p.conditions("Job", j.Constraints, j.Affinities, j.Spreads)
	names := map[string]bool{}
	for i, g := range j.TaskGroups {
		if n := val(g.Name); n == "" {
			p.err("Task group %d missing name", i+1)
		} else if names[n] {
			p.err("Job task group %d redefines %q", i+1, n)
		}
		names[val(g.Name)] = true
		p.group(g, val(j.Type))
	}
	return p
}

var networkMode = regexp.MustCompile(`^(|none|bridge|host|cni/.+)$`)

func (p *Problems) group(g *api.TaskGroup, jobType string) {
	where := fmt.Sprintf("Task group %s", val(g.Name))
	if strings.ContainsRune(val(g.Name), 0) {
		p.err("%s: name contains a null character", where)
	}
	if val(g.Count) < 0 {
		p.err("%s: count can't be negative", where)
	}
	if jobType == model.JobTypeSystem && val(g.Count) > 1 {
		p.err("%s: a system job has one allocation per node, count %d cannot be", where, val(g.Count))
	}
	if len(g.Tasks) == 0 {
		p.err("%s: missing tasks", where)
	}
	p.conditions(where, g.Constraints, g.Affinities, g.Spreads)
	if r := g.RestartPolicy; r != nil {
		if m := val(r.Mode); m != model.RestartModeFail && m != model.RestartModeDelay {
			p.err("%s: unsupported restart mode: %q", where, m)
		}
		if val(r.Attempts) < 0 || val(r.Interval) < 0 || val(r.Delay) < 0 {
			p.err("%s: restart attempts, interval and delay can't be negative", where)
		}
	}
	if r := g.ReschedulePolicy; r != nil && (val(r.Attempts) > 0 || val(r.Unlimited)) {
		if f := val(r.DelayFunction); !slices.Contains([]string{"constant", "exponential", "fibonacci"}, f) {
			p.err("%s: invalid delay function %q, must be one of [constant exponential fibonacci]", where, f)
		}
		if val(r.Unlimited) && val(r.Delay) == 0 {
			p.err("%s: unlimited rescheduling needs a delay: what fails at once would be placed without end", where)
		}
		if val(r.Delay) < 0 || val(r.Interval) < 0 || val(r.MaxDelay) < 0 {
			p.err("%s: reschedule delays and interval can't be negative", where)
		}
		if !val(r.Unlimited) && val(r.Interval) == 0 {
			p.err("%s: reschedule with attempts needs an interval", where)
		}
	}
	if d := g.EphemeralDisk; d != nil && val(d.SizeMB) < 1 {
		p.err("%s: ephemeral disk needs at least 1 MB, not %d", where, val(d.SizeMB))
	}
	p.volumes(where, g.Volumes)
	p.services(where, g.Services)
	p.policies(where, g, jobType)
	p.networks(where, g.Networks)
	if len(g.Networks) > 1 {
		p.err("%s: only one network is allowed, not %d", where, len(g.Networks))
	}
	if _, err := egress.Parse(g.Meta[egress.MetaAllow]); err != nil {
		p.err("%s: meta %s: %v", where, egress.MetaAllow, err)
	}
	if _, err := egress.ParseBandwidth(g.Meta[egress.MetaBandwidth]); err != nil {
		p.err("%s: meta %s: %v", where, egress.MetaBandwidth, err)
	}
	names := map[string]bool{}
	leaders := 0
	for i, t := range g.Tasks {
		if t.Name == "" {
			p.err("%s: task %d missing name", where, i+1)
		} else if strings.ContainsAny(t.Name, "/\\\x00") {
			p.err("%s: task name %q cannot include slashes or null characters", where, t.Name)
		} else if names[t.Name] {
			p.err("%s: task %d redefines %q", where, i+1, t.Name)
		}
		names[t.Name] = true
		if t.Leader {
			leaders++
		}
		p.task(where, t)
	}
	if leaders > 1 {
		p.err("%s: only one task may be marked as leader", where)
	}
	p.lifecycles(where, g)
}

func (p *Problems) task(group string, t *api.Task) {
	where := fmt.Sprintf("%s, task %s", group, t.Name)
	if t.Driver == "" {
		p.err("%s: missing task driver", where)
	}
	if val(t.KillTimeout) < 0 {
		p.err("%s: kill timeout must be a positive value", where)
	}
	p.conditions(where, t.Constraints, t.Affinities, nil)
	if r := t.Resources; r != nil {
		if val(r.Cores) > 0 {
			p.err("%s: reserving whole cores is not supported by Rockpool, ask for cpu", where)
		} else if n := val(r.CPU); n < 1 {
			p.err("%s: minimum CPU value is 1; got %d", where, n)
		}
		if n := val(r.MemoryMB); n < 10 {
			p.err("%s: minimum MemoryMB value is 10; got %d", where, n)
		}
		if hi, lo := val(r.MemoryMaxMB), val(r.MemoryMB); hi != 0 && hi < lo {
			p.err("%s: MemoryMaxMB value (%d) should be larger than MemoryMB value (%d)", where, hi, lo)
		}
		for _, d := range r.Devices {
			p.device(where, d)
		}
		p.networks(where, r.Networks)
	}
	if l := t.LogConfig; l != nil && !val(l.Disabled) && (val(l.MaxFiles) < 1 || val(l.MaxFileSizeMB) < 1) {
		p.err("%s: minimum number of log files is 1 and minimum file size is 1MB", where)
	}
	for _, f := range []struct {
		what string
		used bool
	}{
		{"artifacts", len(t.Artifacts) > 0},
		{"Vault", t.Vault != nil},
		{"CSI plugins", t.CSIPluginConfig != nil}, {"secrets", len(t.Secrets) > 0}, {"schedules", t.Schedule != nil},
	} {
		if f.used {
			p.err("%s: %s: not supported by Rockpool", where, f.what)
		}
	}
	p.services(where, t.Services)
	if t.ShutdownDelay < 0 {
		p.err("%s: ShutdownDelay must be a positive value", where)
	}
	p.furnishing(where, t)
	if len(t.Actions) > 0 {
		p.ignored("action", where)
	}
}

func (p *Problems) networks(where string, list []*api.NetworkResource) {
	labels, values := map[string]bool{}, map[int]bool{}
	for _, n := range list {
		if n == nil {
			p.err("%s: a network is null", where)
			continue
		}
		if !networkMode.MatchString(n.Mode) {
			p.err("%s: network mode %q is none of none, bridge, host, cni/<name>", where, n.Mode)
		}
		if n.DNS != nil && n.Mode == "bridge" {
			for _, s := range n.DNS.Servers {
				if a, err := netip.ParseAddr(s); err != nil || !egress.Public(a) {
					p.err("%s: network dns server %q is not a public IPv4 address, and runners on a bridge reach only those: "+
						"the nodes can ask others for them (orchestrator.network.dns)", where, s)
				}
			}
		}
		for _, port := range slices.Concat(n.ReservedPorts, n.DynamicPorts) {
			switch {
			case port.Label == "":
				p.err("%s: a port has no label", where)
			case labels[port.Label]:
				p.err("%s: port label %s already in use", where, port.Label)
			case port.Value < 0 || port.Value > 65535 || port.To < -1 || port.To > 65535:
				p.err("%s: port %s must be between 0 and 65535", where, port.Label)
			case port.Value > 0 && values[port.Value]:
				p.err("%s: static port %d already reserved", where, port.Value)
			}
			labels[port.Label] = true
			values[port.Value] = true
		}
	}
}

func (p *Problems) conditions(where string, cs []*api.Constraint, as []*api.Affinity, ss []*api.Spread) {
	for i, c := range cs {
		switch {
		case c == nil:
			p.err("%s: constraint %d is null", where, i+1)
		case !sched.Operands[c.Operand]:
			p.err("%s: constraint %d: unknown constraint operator %q", where, i+1, c.Operand)
		case c.Operand == "distinct_property" && c.RTarget != "":
			if n, err := strconv.Atoi(c.RTarget); err != nil || n < 1 {
				p.err("%s: constraint %d: distinct_property needs a count of at least 1, not %q", where, i+1, c.RTarget)
			}
		case c.Operand == "semver" && strings.Contains(c.RTarget, "~>"):
			p.err("%s: constraint %d: semver does not know the operator ~>, version does", where, i+1)
		case c.Operand == "regexp":
			if _, err := regexp.Compile(c.RTarget); err != nil {
				p.err("%s: constraint %d: regular expression failed to compile: %v", where, i+1, err)
			}
		}
	}
	for i, a := range as {
		if a == nil || val(a.Weight) == 0 || val(a.Weight) > 100 || val(a.Weight) < -100 || !sched.Operands[a.Operand] {
			p.err("%s: affinity %d: needs a known operator and a weight from -100 to 100 that is not 0", where, i+1)
		}
	}
	for i, s := range ss {
		if s == nil || s.Attribute == "" {
			p.err("%s: spread %d: missing spread attribute", where, i+1)
			continue
		}
		if w := val(s.Weight); w < 0 || w > 100 {
			p.err("%s: spread %d: weight must be between 0 and 100", where, i+1)
		}
		sum := 0
		for _, t := range s.SpreadTarget {
			if t == nil {
				p.err("%s: spread %d: a target is null", where, i+1)
				continue
			}
			sum += int(t.Percent)
		}
		if sum > 100 {
			p.err("%s: spread %d: sum of spread target percentages must not be greater than 100%%; got %d%%", where, i+1, sum)
		}
	}
}

// Validated reports whether what a key of a group's meta says is held to a rule when its job is registered.
func Validated(key string) bool { return key == egress.MetaAllow || key == egress.MetaBandwidth }
