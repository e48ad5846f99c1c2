package wire

import (
	"strconv"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// Annotations says what a plan would do, by group.
func Annotations(counts map[string]sched.Counts) *api.PlanAnnotations {
	out := &api.PlanAnnotations{DesiredTGUpdates: map[string]*api.DesiredUpdates{}}
	for name, c := range counts {
		out.DesiredTGUpdates[name] = &api.DesiredUpdates{
			Ignore: number(c.Ignore), Place: number(c.Place), Migrate: number(c.Migrate), Stop: number(c.Stop), InPlaceUpdate: number(c.InPlaceUpdate),
			DestructiveUpdate: number(c.DestructiveUpdate), Canary: number(c.Canary), Preemptions: number(c.Preemptions),
		}
	}
	return out
}

func number(n int) uint64 { return uint64(max(n, 0)) }

// AnnotateDiff writes into a diff what comes of it.
func AnnotateDiff(d *api.JobDiff, counts map[string]sched.Counts) {
	for _, g := range d.TaskGroups {
		c, ok := counts[g.Name]
		if !ok {
			continue
		}
		g.Updates = map[string]uint64{}
		for _, u := range []struct {
			name string
			n    int
		}{
			{"ignore", c.Ignore}, {"create", c.Place}, {"migrate", c.Migrate}, {"destroy", c.Stop}, {"in-place update", c.InPlaceUpdate},
			{"create/destroy update", c.DestructiveUpdate}, {"canary", c.Canary}, {"preemptions", c.Preemptions},
		} {
			if u.n > 0 {
				g.Updates[u.name] = uint64(u.n)
			}
		}
		for _, f := range g.Fields {
			if f.Name == "Count" {
				f.Annotations = forces(less(f.Old, f.New), !less(f.Old, f.New), false, false)
			}
		}
		for _, t := range g.Tasks {
			switch t.Type {
			case diffAdded, diffDeleted, diffEdited:
				t.Annotations = forces(g.Type == diffAdded, g.Type == diffDeleted, g.Type == diffEdited && c.DestructiveUpdate+c.Canary > 0,
					g.Type == diffEdited && c.DestructiveUpdate+c.Canary == 0 && c.InPlaceUpdate > 0)
			}
		}
	}
}

func less(x, y string) bool {
	a, _ := strconv.Atoi(x)
	b, _ := strconv.Atoi(y)
	return a < b
}

// forces names the consequences of a difference as Nomad's clients print them.
func forces(create, destroy, replace, inPlace bool) []string {
	switch {
	case create:
		return []string{"forces create"}
	case destroy:
		return []string{"forces destroy"}
	case replace:
		return []string{"forces create/destroy update"}
	case inPlace:
		return []string{"forces in-place update"}
	}
	return nil
}

// MetricsOut explains groups that find no room.
func MetricsOut(in map[string]*model.AllocMetric) map[string]*api.AllocationMetric {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]*api.AllocationMetric, len(in))
	for g, m := range in {
		out[g] = MetricOut(m)
	}
	return out
}

// ScalingPolicyOut makes the wire's scaling policy of a group.
func ScalingPolicyOut(j *model.Job, g *model.TaskGroup) *api.ScalingPolicy {
	s := g.Scaling
	return &api.ScalingPolicy{
		ID: s.ID, Namespace: j.Namespace, Enabled: new(s.Enabled), Min: new(s.Min), Max: new(s.Max), Policy: s.Policy, Type: api.ScalingPolicyTypeHorizontal,
		Target:      map[string]string{"Namespace": j.Namespace, "Job": j.ID, "Group": g.Name},
		CreateIndex: j.CreateIndex, ModifyIndex: j.JobModifyIndex,
	}
}
