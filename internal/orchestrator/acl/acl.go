package acl

import (
	"cmp"
	"slices"
	"strings"

	"rockpool/internal/auth"
)

// ACL is many policies as one answer. It is immutable. The zero value allows nothing.
type ACL struct {
	namespaces []rule
	variables  []varRule
	pools      []rule
	volumes    []rule
	cluster    map[auth.Scope]bool
	somewhere  map[auth.Scope]bool
}

var _ auth.Rights = (*ACL)(nil)

// rule gives scopes to what a glob matches.
type rule struct {
	glob string
	may  map[auth.Scope]bool // nil = denied
}

type varRule struct {
	namespace, path string
	may             map[auth.Scope]bool // nil = denied
}

// Compile makes one ACL of policies: for one name or glob their capabilities add up, and deny in any of them wins.
func Compile(policies ...*Policy) *ACL {
	namespaces, pools, volumes := map[string]*rule{}, map[string]*rule{}, map[string]*rule{}
	variables := map[[2]string]*rule{}
	cluster := map[auth.Scope]bool{}
	denied := map[string]bool{}
	for _, p := range policies {
		for _, n := range p.Namespaces {
			if len(n.Capabilities) > 0 {
				add(namespaces, n.Name, n.Name, n.Capabilities)
			}
			for _, v := range n.Variables {
				add(variables, [2]string{n.Name, v.Path}, v.Path, v.Capabilities)
			}
		}
		for _, n := range p.Pools {
			add(pools, n.Name, n.Name, n.Capabilities)
		}
		for _, n := range p.Volumes {
			add(volumes, n.Name, n.Name, n.Capabilities)
		}
		for area, policy := range p.Areas {
			if policy == deny {
				denied[area] = true
			}
			for _, s := range areas[area][policy] {
				cluster[s] = true
			}
		}
	}
	for area := range denied {
		for _, scopes := range areas[area] {
			for _, s := range scopes {
				delete(cluster, s)
			}
		}
	}
	a := &ACL{namespaces: sorted(namespaces), pools: sorted(pools), volumes: sorted(volumes), cluster: cluster, somewhere: map[auth.Scope]bool{}}
	for k, r := range variables {
		a.variables = append(a.variables, varRule{k[0], r.glob, r.may})
	}
	slices.SortFunc(a.variables, func(x, y varRule) int {
		return cmp.Or(closer(x.namespace, y.namespace), closer(x.path, y.path))
	})
	a.sum()
	return a
}

func add[K comparable](rules map[K]*rule, k K, glob string, caps []string) {
	r := rules[k]
	if r == nil {
		r = &rule{glob, map[auth.Scope]bool{}}
		rules[k] = r
	}
	if slices.Contains(caps, deny) {
		r.may = nil
	}
	if r.may == nil {
		return
	}
	for _, c := range caps {
		r.may[auth.Scope(c)] = true
	}
}

// sorted lists rules in the order in which they are asked: the first that matches decides.
func sorted(rules map[string]*rule) []rule {
	var out []rule
	for _, r := range rules {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(x, y rule) int { return closer(x.glob, y.glob) })
	return out
}

// closer orders globs: names without a star first, then those with more that is not a star, then by text.
func closer(x, y string) int {
	nx, ny := strings.Count(x, "*"), strings.Count(y, "*")
	if (nx == 0) != (ny == 0) {
		return cmp.Compare(min(nx, 1), min(ny, 1))
	}
	return cmp.Or(cmp.Compare(len(y)-ny, len(x)-nx), cmp.Compare(x, y))
}

// sum notes what is allowed anywhere.
func (a *ACL) sum() {
	for s := range a.cluster {
		a.somewhere[s] = true
	}
	note := func(may map[auth.Scope]bool, any auth.Scope) {
		for s := range may {
			a.somewhere[s] = true
			a.somewhere[any] = true
		}
	}
	for _, r := range a.namespaces {
		note(r.may, auth.AnyInNamespace)
	}
	for _, v := range a.variables {
		note(v.may, auth.AnyInNamespace)
	}
	for _, r := range slices.Concat(a.pools, a.volumes) {
		note(r.may, auth.AnyRight)
	}
	if len(a.somewhere) > 0 {
		a.somewhere[auth.AnyRight] = true
	}
}

// MaySomewhere implements [auth.Rights].
func (a *ACL) MaySomewhere(s auth.Scope) bool { return a.somewhere[s] }

// May implements [auth.Rights].
func (a *ACL) May(s auth.Scope, target string) bool {
	switch s {
	case auth.AnyRight:
		return a.somewhere[s]
	case auth.AnyInNamespace:
		if len(a.in(a.namespaces, target)) > 0 {
			return true
		}
		return a.anyVariable(target, func(map[auth.Scope]bool) bool { return true })
	case auth.VariablesList, auth.VariablesRead, auth.VariablesWrite, auth.VariablesDestroy:
		return a.anyVariable(target, func(may map[auth.Scope]bool) bool { return may[s] })
	case auth.PoolRead, auth.PoolWrite, auth.PoolDelete:
		return a.in(a.pools, target)[s]
	case auth.VolumeRead:
		return a.in(a.volumes, target)[s]
	}
	if clusterScopes[s] {
		return a.cluster[s]
	}
	return a.in(a.namespaces, target)[s]
}

// in is what the rule that fits a name best allows; nil = nothing.
func (a *ACL) in(rules []rule, name string) map[auth.Scope]bool {
	for _, r := range rules {
		if Match(r.glob, name) {
			return r.may
		}
	}
	return nil
}

// closed reports whether the rule that fits a namespace best denies it.
func (a *ACL) closed(namespace string) bool {
	for _, r := range a.namespaces {
		if Match(r.glob, namespace) {
			return r.may == nil
		}
	}
	return false
}

func (a *ACL) anyVariable(namespace string, f func(map[auth.Scope]bool) bool) bool {
	return !a.closed(namespace) && slices.ContainsFunc(a.variables, func(v varRule) bool {
		return v.may != nil && Match(v.namespace, namespace) && f(v.may)
	})
}

// MayVariable implements [auth.Rights]. Of the rules whose namespace and path both match, that with the closest namespace decides, then that with the
// closest path. A namespace that is denied has no variables to see.
func (a *ACL) MayVariable(s auth.Scope, namespace, path string) bool {
	if a.closed(namespace) {
		return false
	}
	for _, v := range a.variables {
		if Match(v.namespace, namespace) && Match(v.path, path) {
			return v.may[s]
		}
	}
	return false
}

// Match reports whether a name fits a glob, in which a star stands for any characters, also for none and for slashes.
func Match(glob, name string) bool {
	first, rest, star := strings.Cut(glob, "*")
	if !star {
		return glob == name
	}
	name, ok := strings.CutPrefix(name, first)
	if !ok {
		return false
	}
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(name, part)
		}
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(part):], more
	}
}
