package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// follow tells how an evaluation goes, and what comes of it: first the placement, then the deployment, or the start of what was placed. Exit code 2 says that
// not everything was placed or became healthy.
func (c *Call) follow(ctx context.Context, id string, verbose bool) error {
	seen := map[string]bool{}
	for last := ""; ; {
		e, _, err := c.api.Evaluations().Info(id, c.query(ctx))
		if err != nil {
			return err
		}
		if e.Status != last {
			fmt.Fprintf(c.Out, "Evaluation %s is %s\n", c.id(e.ID, verbose), e.Status)
			last = e.Status
		}
		if err := c.tell(ctx, e, seen, verbose); err != nil {
			return err
		}
		switch e.Status {
		case "complete":
			return c.outcome(ctx, e, seen, verbose)
		case "failed", "canceled":
			return failed(2, "evaluation %s is %s: %s", e.ID, e.Status, e.StatusDescription)
		case "blocked":
			explainFailures(c.Out, e.FailedTGAllocs)
			return failed(2, "evaluation %s waits for room", e.ID)
		}
		if err := c.sleep(ctx); err != nil {
			return err
		}
	}
}

func (c *Call) id(id string, verbose bool) string {
	if verbose {
		return id
	}
	return short(id)
}

// tell writes what is new about an evaluation's allocations.
func (c *Call) tell(ctx context.Context, e *api.Evaluation, seen map[string]bool, verbose bool) error {
	allocs, err := c.placed(ctx, e)
	if err != nil {
		return err
	}
	for _, a := range allocs {
		key := a.ID + a.ClientStatus
		if !seen[key] {
			seen[key] = true
			fmt.Fprintf(c.Out, "Allocation %s of group %q on node %s is %s\n", c.id(a.ID, verbose), a.TaskGroup, c.id(a.NodeID, verbose), a.ClientStatus)
		}
	}
	return nil
}

// placed are the allocations that an evaluation made.
func (c *Call) placed(ctx context.Context, e *api.Evaluation) ([]*api.AllocationListStub, error) {
	q := c.query(ctx)
	q.Namespace = e.Namespace
	allocs, _, err := c.api.Evaluations().Allocations(e.ID, q)
	slices.SortFunc(allocs, func(a, b *api.AllocationListStub) int { return cmp.Compare(a.Name, b.Name) })
	return allocs, err
}

// outcome waits until what a complete evaluation has begun has come to an end, good or bad.
func (c *Call) outcome(ctx context.Context, e *api.Evaluation, seen map[string]bool, verbose bool) error {
	if len(e.FailedTGAllocs) > 0 {
		explainFailures(c.Out, e.FailedTGAllocs)
		what := "not everything was placed"
		if e.BlockedEval != "" {
			what += fmt.Sprintf("; evaluation %s waits for room", c.id(e.BlockedEval, verbose))
		}
		return failed(2, "%s", what)
	}
	if e.DeploymentID != "" {
		return c.deploy(ctx, e.DeploymentID, verbose)
	}
	for {
		allocs, err := c.placed(ctx, e)
		if err != nil {
			return err
		}
		if err := c.tell(ctx, e, seen, verbose); err != nil {
			return err
		}
		waiting := false
		for _, a := range allocs {
			switch {
			case a.DesiredStatus != "run": // replaced or stopped meanwhile
			case a.ClientStatus == "failed" || a.ClientStatus == "lost" || a.ClientStatus == "unknown":
				return failed(2, "allocation %s is %s: %s", a.ID, a.ClientStatus, or(reason(a), "see \"orchestrator alloc status\""))
			case a.ClientStatus == "pending":
				waiting = true
			}
		}
		if !waiting {
			return nil
		}
		if err := c.sleep(ctx); err != nil {
			return err
		}
	}
}

// reason is the last event of a task that failed.
func reason(a *api.AllocationListStub) string {
	for _, name := range slices.Sorted(maps.Keys(a.TaskStates)) {
		s := a.TaskStates[name]
		for _, e := range slices.Backward(s.Events) {
			if s.Failed && e.DisplayMessage != "" {
				return "task " + name + ": " + e.DisplayMessage
			}
		}
	}
	return a.ClientDescription
}

func (c *Call) deploy(ctx context.Context, id string, verbose bool) error {
	for last := ""; ; {
		d, _, err := c.api.Deployments().Info(id, c.query(ctx))
		if err != nil {
			return err
		}
		now := d.Status
		for _, g := range slices.Sorted(maps.Keys(d.TaskGroups)) {
			s := d.TaskGroups[g]
			now += fmt.Sprintf(", group %q %d of %d healthy", g, s.HealthyAllocs, s.DesiredTotal)
		}
		if now != last {
			fmt.Fprintf(c.Out, "Deployment %s is %s\n", c.id(id, verbose), now)
			last = now
		}
		switch d.Status {
		case "successful":
			return nil
		case "failed", "cancelled", "blocked":
			return failed(2, "deployment %s is %s: %s", id, d.Status, d.StatusDescription)
		case "paused":
			return failed(2, "deployment %s is paused", id)
		}
		if waitsForPromotion(d) {
			return failed(2, "deployment %s waits for its canaries to be promoted", id)
		}
		if err := c.sleep(ctx); err != nil {
			return err
		}
	}
}

// waitsForPromotion reports whether all canaries are healthy and nothing goes on by itself.
func waitsForPromotion(d *api.Deployment) bool {
	waits := false
	for _, s := range d.TaskGroups {
		if s.DesiredCanaries > 0 && !s.Promoted {
			if s.HealthyAllocs < s.DesiredCanaries {
				return false
			}
			waits = true
		}
	}
	return waits && strings.Contains(d.StatusDescription, "manual promotion")
}

func (c *Call) deployment(d *api.Deployment, verbose bool) {
	pairs(c.Out, "ID", c.id(d.ID, verbose), "Status", d.Status, "Description", d.StatusDescription)
	rows := [][]string{{"Task Group", "Promoted", "Desired", "Canaries", "Placed", "Healthy", "Unhealthy"}}
	for _, g := range slices.Sorted(maps.Keys(d.TaskGroups)) {
		s := d.TaskGroups[g]
		rows = append(rows, []string{g, fmt.Sprint(s.Promoted), itoa(s.DesiredTotal), itoa(s.DesiredCanaries), itoa(s.PlacedAllocs), itoa(s.HealthyAllocs), itoa(s.UnhealthyAllocs)})
	}
	table(c.Out, rows)
}

// explainFailures says why groups found no place.
func explainFailures(w io.Writer, groups map[string]*api.AllocationMetric) {
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		m := groups[g]
		fmt.Fprintf(w, "Group %q (%d not placed):\n", g, m.CoalescedFailures+1)
		if m.NodesEvaluated == 0 {
			fmt.Fprintf(w, "  * no node could be looked at: %s\n", available(m))
		}
		for _, part := range []struct {
			what string
			by   map[string]int
		}{
			{"constraint %s: filtered %d nodes", m.ConstraintFiltered}, {"class %s: filtered %d nodes", m.ClassFiltered},
			{"resources: %s on %d nodes", m.DimensionExhausted}, {"class %s: %d nodes are full", m.ClassExhausted},
		} {
			for _, k := range slices.Sorted(maps.Keys(part.by)) {
				fmt.Fprintf(w, "  * "+part.what+"\n", k, part.by[k])
			}
		}
		for _, q := range m.QuotaExhausted {
			fmt.Fprintf(w, "  * quota: %s\n", q)
		}
	}
}

func available(m *api.AllocationMetric) string {
	if len(m.NodesAvailable) == 0 {
		return "none is ready in the job's datacenters and node pool"
	}
	var parts []string
	for _, dc := range slices.Sorted(maps.Keys(m.NodesAvailable)) {
		parts = append(parts, fmt.Sprintf("%d in datacenter %s", m.NodesAvailable[dc], dc))
	}
	return strings.Join(parts, ", ")
}

// planned writes what a plan would do and reports whether that is anything.
func planned(w io.Writer, a *api.PlanAnnotations) bool {
	changes := false
	if a == nil {
		return false
	}
	for _, g := range slices.Sorted(maps.Keys(a.DesiredTGUpdates)) {
		u := a.DesiredTGUpdates[g]
		var parts []string
		for _, p := range []struct {
			n    uint64
			what string
			same bool
		}{
			{u.Place, "create", false}, {u.Stop, "stop", false}, {u.Migrate, "migrate", false}, {u.InPlaceUpdate, "update in place", false},
			{u.DestructiveUpdate, "replace", false}, {u.Canary, "canary", false}, {u.Preemptions, "preempt", false}, {u.Ignore, "leave", true},
		} {
			if p.n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
				changes = changes || !p.same
			}
		}
		fmt.Fprintf(w, "Group %q: %s\n", g, or(strings.Join(parts, ", "), "nothing"))
	}
	return changes
}

var signs = map[string]string{"Added": "+ ", "Deleted": "- ", "Edited": "+/- "}

func printDiff(w io.Writer, d *api.JobDiff) {
	fmt.Fprintf(w, "%sJob: %q\n", signs[d.Type], d.ID)
	printFields(w, "", d.Fields, d.Objects)
	for _, g := range d.TaskGroups {
		fmt.Fprintf(w, "%sTask Group: %q\n", signs[g.Type], g.Name)
		printFields(w, "  ", g.Fields, g.Objects)
		for _, t := range g.Tasks {
			fmt.Fprintf(w, "  %sTask: %q %s\n", signs[t.Type], t.Name, strings.Join(t.Annotations, ", "))
			printFields(w, "    ", t.Fields, t.Objects)
		}
	}
}

func printFields(w io.Writer, indent string, fields []*api.FieldDiff, objects []*api.ObjectDiff) {
	for _, f := range fields {
		if f.Type != "None" && f.Type != "" {
			fmt.Fprintf(w, "%s%s%s: %q => %q\n", indent, signs[f.Type], f.Name, f.Old, f.New)
		}
	}
	for _, o := range objects {
		if o.Type == "None" || o.Type == "" {
			continue
		}
		fmt.Fprintf(w, "%s%s%s {\n", indent, signs[o.Type], o.Name)
		printFields(w, indent+"  ", o.Fields, o.Objects)
		fmt.Fprintf(w, "%s}\n", indent)
	}
}

func (c *Call) evals(list []*api.Evaluation) {
	rows := [][]string{{"ID", "Priority", "Triggered By", "Status", "Placement Failures"}}
	for _, e := range list {
		rows = append(rows, []string{e.ID, itoa(e.Priority), e.TriggeredBy, e.Status, fmt.Sprint(len(e.FailedTGAllocs) > 0)})
	}
	table(c.Out, rows)
}

func (c *Call) allocs(list []*api.AllocationListStub, verbose bool) {
	if len(list) == 0 {
		fmt.Fprintln(c.Out, "No allocations placed")
		return
	}
	slices.SortFunc(list, func(a, b *api.AllocationListStub) int { return int(b.CreateIndex) - int(a.CreateIndex) })
	rows := [][]string{{"ID", "Node ID", "Task Group", "Version", "Desired", "Status", "Created", "Modified"}}
	for _, a := range list {
		rows = append(rows, []string{c.id(a.ID, verbose), c.id(a.NodeID, verbose), a.TaskGroup, itoa(a.JobVersion), a.DesiredStatus, a.ClientStatus, when(a.CreateTime), when(a.ModifyTime)})
	}
	table(c.Out, rows)
}
