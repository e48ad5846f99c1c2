package leader

import (
	"cmp"
	"fmt"
	"slices"

	"rockpool/internal/orchestrator/acl"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Misplaced says why a job cannot be in its namespace; "" = it can. It is asked of whatever makes a job run that may not have been allowed before: also of an
// earlier version, and of a template whose namespace has become stricter.
func Misplaced(s *state.Snapshot, w state.Watch, j *model.Job) string {
	n := s.Namespace(w, j.Namespace)
	if n == nil {
		return fmt.Sprintf("job %q is in nonexistent namespace %q", j.ID, j.Namespace)
	}
	pool := cmp.Or(j.NodePool, model.PoolDefault)
	matches := func(globs []string) bool {
		return slices.ContainsFunc(globs, func(g string) bool { return acl.Match(g, pool) })
	}
	switch {
	case s.NodePool(w, pool) == nil:
		return fmt.Sprintf("job %q is in nonexistent node pool %q", j.ID, pool)
	case pool != cmp.Or(n.DefaultPool, model.PoolDefault) && (len(n.AllowedPools) > 0 && !matches(n.AllowedPools) || matches(n.DeniedPools)):
		return fmt.Sprintf("node pool %q is not allowed in namespace %q", pool, n.Name)
	}
	closed := func(enabled, disabled []string, what string) bool {
		return len(enabled) > 0 && !slices.Contains(enabled, what) || slices.Contains(disabled, what)
	}
	for _, g := range j.TaskGroups {
		for _, net := range g.Networks {
			mode := cmp.Or(net.Mode, "host") // as Nomad calls it
			if closed(n.EnabledNetworks, n.DeniedNetworks, net.Mode) && closed(n.EnabledNetworks, n.DeniedNetworks, mode) {
				return fmt.Sprintf("used group network mode %q is not allowed in namespace %q", net.Mode, n.Name)
			}
		}
		for _, t := range g.Tasks {
			if closed(n.EnabledDrivers, n.DisabledDrivers, t.Driver) {
				return fmt.Sprintf("used task driver %q is not allowed in namespace %q", t.Driver, n.Name)
			}
		}
	}
	return ""
}
