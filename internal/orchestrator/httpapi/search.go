package httpapi

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strings"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

func (a *API) searchTable() endpoint.Table {
	return putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("search.prefix"+name, method, "/v1/search", endpoint.Policy{Scope: auth.AnyRight, Body: smallBody}, a.search),
			endpoint.Call("search.fuzzy"+name, method, "/v1/search/fuzzy", endpoint.Policy{Scope: auth.AnyRight, Body: smallBody}, a.searchFuzzy),
		}
	})
}

const (
	maxMatches   = 20
	maxSearched  = 100_000 // objects looked at in one context
	leastFuzzy   = 2
	contextAll   = "all"
	noSuchSearch = "context must be one of all, allocs, deployment, evals, host_volumes, jobs, namespaces, node_pools, nodes, plugins, quotas, " +
		"scaling_policy, vars, volumes"
)

type searchRequest struct {
	Namespace string `query:"namespace"`
	Body      struct {
		Prefix, Text, Context, Namespace string
	} `body:"json"`
}

// searcher is one request.
type searcher struct {
	snap      *state.Snapshot
	id        auth.Identity
	namespace string
	text      string
}

// in reports whether the search covers a namespace and the caller has the scope in it.
func (s *searcher) in(scope auth.Scope, namespace string) bool {
	return (s.namespace == auth.Everywhere || s.namespace == namespace) && s.id.MayIn(scope, namespace)
}

// match is what was found: what to show and where it is.
type match struct {
	id    string // what is compared and, for a prefix search, shown
	scope []string
	shown string // of a fuzzy search; "" = id
}

// searches list, by context, what a caller may see. A prefix search takes what begins with the text, a fuzzy one what holds it.
var searches = map[string]func(s *searcher) iter.Seq[match]{
	"allocs": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Allocs(nil, ""), func(al *model.Allocation) (match, bool) {
			return match{al.ID, []string{al.Namespace, al.ID}, al.Name}, s.in(auth.ReadJob, al.Namespace)
		})
	},
	"evals": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Evals(nil, ""), func(e *model.Evaluation) (match, bool) {
			return match{id: e.ID, scope: []string{e.Namespace}}, s.in(auth.ReadJob, e.Namespace)
		})
	},
	"jobs": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Jobs(nil, s.namespace, ""), func(j *model.Job) (match, bool) {
			return match{j.ID, []string{j.Namespace, j.ID}, j.Name}, s.in(auth.ReadJob, j.Namespace)
		})
	},
	"deployment": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Deployments(nil, ""), func(d *model.Deployment) (match, bool) {
			return match{id: d.ID, scope: []string{d.Namespace}}, s.in(auth.ReadJob, d.Namespace)
		})
	},
	"nodes": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Nodes(nil, ""), func(n *model.Node) (match, bool) {
			return match{n.ID, []string{n.ID}, n.Name}, s.id.May(auth.NodeRead)
		})
	},
	"node_pools": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.NodePools(nil, ""), func(p *model.NodePool) (match, bool) {
			return match{id: p.Name}, s.id.MayIn(auth.PoolRead, p.Name)
		})
	},
	"namespaces": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Namespaces(nil, ""), func(n *model.Namespace) (match, bool) {
			return match{id: n.Name}, s.id.MayIn(auth.AnyInNamespace, n.Name)
		})
	},
	"quotas": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Quotas(nil, ""), func(q *model.Quota) (match, bool) {
			return match{id: q.Name}, s.id.May(auth.QuotaRead)
		})
	},
	"vars": func(s *searcher) iter.Seq[match] {
		return mapped(s.snap.Variables(nil, s.namespace, ""), func(v *model.Variable) (match, bool) {
			return match{id: v.Path, scope: []string{v.Namespace, v.Path}}, s.id.MayVariable(auth.VariablesList, v.Namespace, v.Path)
		})
	},
	// There are none of these.
	"plugins": nothing, "volumes": nothing, "host_volumes": nothing, "scaling_policy": nothing,
}

func nothing(*searcher) iter.Seq[match] { return func(func(match) bool) {} }

func (a *API) searcher(id auth.Identity, r searchRequest, text string) (*searcher, []string, error) {
	s := &searcher{a.store.Snapshot(), id, cmp.Or(r.Namespace, r.Body.Namespace, model.DefaultNamespace), text}
	switch c := r.Body.Context; {
	case c == contextAll, c == "":
		var all []string
		for name := range searches {
			all = append(all, name)
		}
		slices.Sort(all)
		return s, all, nil
	case searches[c] != nil:
		return s, []string{c}, nil
	}
	return nil, nil, fault.New(fault.Invalid, "%s", noSuchSearch)
}

// take collects the first matches of one context, best first where rank differs, and whether there are more.
func (s *searcher) take(context string, rank func(match) (int, bool)) (out []match, more bool) {
	type ranked struct {
		match
		rank int
	}
	var all []ranked
	looked := 0
	for m := range searches[context](s) {
		if looked++; looked > maxSearched {
			more = true
			break
		}
		if n, ok := rank(m); ok {
			all = append(all, ranked{m, n})
		}
	}
	slices.SortStableFunc(all, func(x, y ranked) int { return cmp.Compare(x.rank, y.rank) })
	for _, m := range all[:min(len(all), maxMatches)] {
		out = append(out, m.match)
	}
	return out, more || len(all) > maxMatches
}

type searchAnswer struct {
	Matches     map[wire.SearchContext][]string
	Truncations map[wire.SearchContext]bool
	Index       uint64
	LastContact int64
	KnownLeader bool
}

func (a *API) search(_ context.Context, id auth.Identity, r searchRequest) (reply, error) {
	s, contexts, err := a.searcher(id, r, r.Body.Prefix)
	if err != nil {
		return reply{}, err
	}
	out := searchAnswer{Matches: map[wire.SearchContext][]string{}, Truncations: map[wire.SearchContext]bool{}, Index: s.snap.Index(), KnownLeader: true}
	for _, c := range contexts {
		found, more := s.take(c, func(m match) (int, bool) { return 0, strings.HasPrefix(m.id, s.text) })
		if len(contexts) > 1 && len(found) == 0 {
			continue
		}
		ids := []string{}
		for _, m := range found {
			ids = append(ids, m.id)
		}
		out.Matches[wire.SearchContext(c)], out.Truncations[wire.SearchContext(c)] = ids, more
	}
	return a.written(s.snap.Index(), out), nil
}

type fuzzyAnswer struct {
	Matches     map[wire.SearchContext][]wire.FuzzyMatch
	Truncations map[wire.SearchContext]bool
	Index       uint64
	LastContact int64
	KnownLeader bool
}

// searchFuzzy finds names that hold the text, those that begin with it first.
func (a *API) searchFuzzy(_ context.Context, id auth.Identity, r searchRequest) (reply, error) {
	s, contexts, err := a.searcher(id, r, strings.ToLower(r.Body.Text))
	if err != nil {
		return reply{}, err
	}
	if len(s.text) < leastFuzzy {
		return reply{}, fault.New(fault.Invalid, "fuzzy search query must be at least %d characters, got %d", leastFuzzy, len(s.text))
	}
	out := fuzzyAnswer{Matches: map[wire.SearchContext][]wire.FuzzyMatch{}, Truncations: map[wire.SearchContext]bool{}, Index: s.snap.Index(), KnownLeader: true}
	for _, c := range contexts {
		found, more := s.take(c, func(m match) (int, bool) {
			at := strings.Index(strings.ToLower(cmp.Or(m.shown, m.id)), s.text)
			if m.shown == "" && (c == "evals" || c == "deployment") && at > 0 {
				at = -1 // a UUID is found by its beginning alone
			}
			return at, at >= 0
		})
		for _, m := range found {
			k := wire.SearchContext(c)
			out.Matches[k] = append(out.Matches[k], wire.FuzzyMatch{ID: cmp.Or(m.shown, m.id), Scope: m.scope})
			out.Truncations[k] = more
		}
	}
	return a.written(s.snap.Index(), out), nil
}
