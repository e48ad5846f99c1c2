package sched

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// conditions are the constraints that hold for a group.
func (p *pass) conditions(job *model.Job, g *model.TaskGroup) [][]model.Constraint {
	sets := [][]model.Constraint{job.Constraints, g.Constraints}
	for _, t := range g.Tasks {
		sets = append(sets, t.Constraints)
	}
	return sets
}

// unique reports whether a condition looks at what is a node's own.
func unique(c model.Constraint) bool {
	return strings.Contains(c.LTarget, "unique.") || strings.Contains(c.RTarget, "unique.")
}

// infeasible says in words why the group cannot run on a node, whatever is free there. What follows from the class is found out once.
func (f *field) infeasible(s *Seat) string {
	why, known := f.verdicts[s.class]
	if !known {
		why = f.judge(s.Node, false)
		f.verdicts[s.class] = why
		for _, cs := range f.constraint {
			f.ownWay = f.ownWay || slices.ContainsFunc(cs, unique)
		}
	}
	if why == "" && f.ownWay {
		why = f.judge(s.Node, true)
	}
	return why
}

// judge looks at what a class has in common, or at the conditions on what is a node's own.
func (f *field) judge(n *model.Node, own bool) string {
	if !own {
		for _, t := range f.g.Tasks {
			d, ok := n.Drivers[t.Driver]
			if !ok || d == nil || !d.Detected || !d.Healthy {
				return "missing drivers"
			}
			name, _ := t.Config["runtime"].(string)
			switch {
			case name == "":
			case !offers(d, "runtimes", name):
				return fmt.Sprintf("driver %s offers no runtime %q", t.Driver, name)
			case len(t.Resources.Devices) > 0 && !offers(d, "runtimes.devices", name):
				return fmt.Sprintf("driver %s gives no devices to runtime %q, in which programs have a kernel of their own", t.Driver, name)
			}
		}
		for _, nw := range f.g.Networks {
			switch nw.Mode {
			case "", "none", "host":
			default:
				if n.Attributes["network."+nw.Mode] == "" {
					return fmt.Sprintf("missing network %q", nw.Mode)
				}
			}
		}
		for _, name := range sortedKeys(f.g.Volumes) {
			v := f.g.Volumes[name]
			if h := n.HostVolumes[v.Source]; h == nil {
				return fmt.Sprintf("missing host volume %q", v.Source)
			} else if h.ReadOnly && !v.ReadOnly {
				return fmt.Sprintf("host volume %q is read only", v.Source)
			}
		}
	}
	for _, cs := range f.constraint {
		for _, c := range cs {
			if c.Operand == opDistinctHosts || c.Operand == opDistinctProperty || unique(c) != own {
				continue
			}
			if !Matches(n, c.LTarget, c.Operand, c.RTarget) {
				return strings.TrimSpace(c.LTarget + " " + cmp.Or(c.Operand, "=") + " " + c.RTarget)
			}
		}
	}
	return ""
}

// offers reports whether a driver can provide something by name, such as an image. One that does not list what it has in an attribute, separated by
// commas, takes any.
func offers(d *model.DriverInfo, attribute, name string) bool {
	list, limited := d.Attributes[attribute]
	return !limited || slices.Contains(strings.Split(list, ","), name)
}

// distinct bounds how many allocations of a job or group share the value of a target.
type distinct struct {
	target string
	group  string // "" = all of the job count
	most   int
	what   string
	counts map[string]int
}

func (d *distinct) add(n *model.Node) {
	if v, ok := resolve(n, d.target); ok {
		d.counts[v]++
	}
}

func (f *field) findDistinct() {
	for i, cs := range f.constraint {
		group := f.g.Name
		if i == 0 {
			group = "" // the job's own
		}
		for _, c := range cs {
			switch {
			case c.Operand == opDistinctHosts && c.RTarget != "false":
				f.distinct = append(f.distinct, distinct{"${node.unique.id}", group, 1, opDistinctHosts, map[string]int{}})
			case c.Operand == opDistinctProperty:
				most := 1
				if k, err := strconv.Atoi(c.RTarget); err == nil && k > 0 {
					most = k
				}
				f.distinct = append(f.distinct, distinct{c.LTarget, group, most, opDistinctProperty + ": " + c.LTarget, map[string]int{}})
			}
		}
	}
}

// clash says which of the conditions on the job's other allocations a node does not meet.
func (f *field) clash(s *Seat) string {
	for i := range f.distinct {
		d := &f.distinct[i]
		if v, ok := resolve(s.Node, d.target); !ok || d.counts[v] >= d.most {
			return d.what
		}
	}
	return ""
}
