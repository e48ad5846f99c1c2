package acl_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/auth"
	"rockpool/internal/orchestrator/acl"
)

func compile(t testing.TB, rules ...string) *acl.ACL {
	t.Helper()
	var list []*acl.Policy
	for _, r := range rules {
		p, err := acl.Parse(r)
		if err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		list = append(list, p)
	}
	return acl.Compile(list...)
}

func TestWhatPoliciesAllow(t *testing.T) {
	const read, write, closed = `namespace "a" { policy = "read" }`, `namespace "a" { policy = "write" }`, `namespace "a" { policy = "deny" }`
	for _, c := range []struct {
		name   string
		rules  []string
		scope  auth.Scope
		target string
		want   bool
	}{
		{"read reads", []string{read}, auth.ReadJob, "a", true},
		{"read does not write", []string{read}, auth.SubmitJob, "a", false},
		{"nor elsewhere", []string{read}, auth.ReadJob, "b", false},
		{"a name is no prefix", []string{read}, auth.ReadJob, "ab", false},
		{"policies add up", []string{read, `namespace "a" { capabilities = ["alloc-exec"] }`}, auth.AllocExec, "a", true},
		{"write writes files", []string{write}, auth.WriteFS, "a", true},
		{"deny wins, last", []string{write, closed}, auth.ReadJob, "a", false},
		{"deny wins, first", []string{closed, write}, auth.ReadJob, "a", false},
		{"deny wins within one", []string{"namespace \"a\" {\npolicy = \"write\"\ncapabilities = [\"deny\"]\n}"}, auth.ReadJob, "a", false},
		{"a glob", []string{`namespace "te*" { policy = "read" }`}, auth.ReadJob, "team", true},
		{"a glob matches nothing more too", []string{`namespace "te*" { policy = "read" }`}, auth.ReadJob, "te", true},
		{"a glob's end counts", []string{`namespace "*-dev" { policy = "read" }`}, auth.ReadJob, "x-dev-prod", false},
		{"the longer glob decides", []string{`namespace "*" { policy = "write" }`, `namespace "prod-*" { policy = "deny" }`}, auth.ReadJob, "prod-1", false},
		{"also when it gives more", []string{`namespace "*" { policy = "deny" }`, `namespace "dev-*" { policy = "read" }`}, auth.ReadJob, "dev-1", true},
		{"stars make no glob longer", []string{`namespace "p****" { policy = "write" }`, `namespace "pro*" { policy = "deny" }`}, auth.ReadJob, "prod", false},
		{"a name goes before every glob", []string{`namespace "prod*" { policy = "deny" }`, `namespace "prod" { policy = "read" }`}, auth.ReadJob, "prod", true},
		{"a namespace called star is none", []string{read}, auth.ReadJob, "*x", false},
		{"nodes", []string{`node { policy = "write" }`}, auth.NodeRead, "", true},
		{"nodes denied", []string{`node { policy = "write" }`, `node { policy = "deny" }`}, auth.NodeRead, "", false},
		{"agent is not operator", []string{`agent { policy = "write" }`}, auth.OpRead, "", false},
		{"a namespace gives no cluster scope", []string{`namespace "*" { policy = "write" }`}, auth.NodeRead, "", false},
		{"and no management", []string{`namespace "*" { policy = "write" }`}, auth.Management, "a", false},
		{"pools", []string{`node_pool "gpu" { policy = "write" }`}, auth.PoolDelete, "gpu", true},
		{"pools by capability", []string{`node_pool "gpu" { capabilities = ["read"] }`}, auth.PoolWrite, "gpu", false},
		{"plugins", []string{`plugin { policy = "list" }`}, auth.PluginRead, "", false},
		{"quotas", []string{`quota { policy = "read" }`}, auth.QuotaRead, "", true},
		{"anything in a namespace", []string{`namespace "a" { variables { path "x" { capabilities = ["read"] } } }`}, auth.AnyInNamespace, "a", true},
		{"but not in another", []string{`namespace "a" { variables { path "x" { capabilities = ["read"] } } }`}, auth.AnyInNamespace, "b", false},
		{"nothing from nothing", nil, auth.AnyRight, "", false},
		{"JSON", []string{`{"namespace":{"a":{"policy":"read"}},"node":{"policy":"read"}}`}, auth.NodeRead, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := compile(t, c.rules...).May(c.scope, c.target); got != c.want {
				t.Errorf("%s on %q is %v", c.scope, c.target, got)
			}
		})
	}
}

func TestWhatPoliciesAllowOnVariables(t *testing.T) {
	a := compile(t, `
namespace "*" { variables { path "*" { capabilities = ["list"] } } }
namespace "a" {
  variables {
    path "app/*"        { capabilities = ["read", "write"] }
    path "app/secret/*" { capabilities = ["deny"] }
    path "app/secret/x" { capabilities = ["destroy"] }
  }
}
namespace "shut" {
  policy = "deny"
  variables { path "*" { capabilities = ["read"] } }
}`, `namespace "a" { variables { path "both" { capabilities = ["read"] } } }`, `namespace "a" { variables { path "both" { capabilities = ["deny"] } } }`)
	for _, c := range []struct {
		scope           auth.Scope
		namespace, path string
		want            bool
	}{
		{auth.VariablesRead, "a", "app/1", true},
		{auth.VariablesList, "a", "app/1", true}, // read lists
		{auth.VariablesDestroy, "a", "app/1", false},
		{auth.VariablesRead, "a", "app", false}, // not below app/
		{auth.VariablesRead, "a", "application", false},
		{auth.VariablesRead, "a", "app/secret/y", false},
		{auth.VariablesDestroy, "a", "app/secret/x", true},
		{auth.VariablesRead, "a", "app/secret/x", false},
		{auth.VariablesList, "b", "any", true},
		{auth.VariablesRead, "b", "any", false},
		{auth.VariablesRead, "shut", "any", false},
		{auth.VariablesRead, "a", "both", false},
	} {
		if got := a.MayVariable(c.scope, c.namespace, c.path); got != c.want {
			t.Errorf("%s on %s in %s is %v", c.scope, c.path, c.namespace, got)
		}
	}
}

func TestWrongPoliciesSayWhatWouldBeRight(t *testing.T) {
	for rules, want := range map[string]string{
		``:                                                                     "say nothing",
		`namespace "a" {}`:                                                     "needs a policy",
		`namespace "a" { policy = "all" }`:                                     "must be one of deny, read, scale, write",
		`namespace "a" { polcy = "read" }`:                                     "polcy",
		`namespace { policy = "read" }`:                                        "name",
		`namespace "a b" { policy = "read" }`:                                  "1 to 128 letters",
		`namespace "a" { capabilities = ["fly"] }`:                             `"fly" is not known`,
		`namespace "a" { capabilities = "read-job" }`:                          "list of strings",
		`namespace "a" { capabilities = [for x in [1] : x] }`:                  "only strings",
		`namespace "a" { policy = upper("read") }`:                             "only strings",
		`namespace "a" { policy = var.x }`:                                     "only strings",
		`node { policy = "list" }`:                                             "must be one of deny, read, write",
		`node "x" { policy = "read" }`:                                         "node",
		`sentinel { policy = "read" }`:                                         "sentinel",
		`node { policy = "read" }  node { policy = "deny" }`:                   "twice",
		`namespace "a" { variables { path "x y" { capabilities=["read"] } } }`: "letters, digits",
		`namespace "a" { variables { path "x" { capabilities=["fly"] } } }`:    "known are list",
		`namespace "a" { variables { path "x" { capabilities=[] } } }`:         "needs capabilities",
		"node_pool \"a\" {\npolicy = \"read\"\nvariables {}\n}":                "no variables",
		`namespace "a" { policy = "read"`:                                      "rules",
		strings.Repeat("#", acl.MaxRules+1):                                    "longer",
	} {
		if _, err := acl.Parse(rules); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s gave %v, want %q in it", rules, err, want)
		}
	}
}

// Match is held against the plain recursive meaning of a star.
func TestGlobs(t *testing.T) {
	var naive func(g, s string) bool
	naive = func(g, s string) bool {
		switch {
		case g == "":
			return s == ""
		case g[0] == '*':
			return naive(g[1:], s) || s != "" && naive(g, s[1:])
		}
		return s != "" && g[0] == s[0] && naive(g[1:], s[1:])
	}
	rapid.Check(t, func(t *rapid.T) {
		g := rapid.StringOfN(rapid.SampledFrom([]rune("ab*")), 0, 8, -1).Draw(t, "glob")
		s := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 10, -1).Draw(t, "name")
		if got, want := acl.Match(g, s), naive(g, s); got != want {
			t.Fatalf("%q on %q is %v", g, s, got)
		}
	})
}

// Adding a denial never gives a right, in whatever order policies come.
func TestDenialsOnlyTakeAway(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []*acl.Policy
		for range rapid.IntRange(0, 4).Draw(t, "policies") {
			name := rapid.SampledFrom([]string{"a", "a*", "*", "ab"}).Draw(t, "name")
			policy := rapid.SampledFrom([]string{"read", "write", "scale", "deny"}).Draw(t, "policy")
			p, err := acl.Parse(`namespace "` + name + `" { policy = "` + policy + `" }`)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		name := rapid.SampledFrom([]string{"a", "ab", "abc", "b"}).Draw(t, "target")
		no, err := acl.Parse(`namespace "` + name + `" { policy = "deny" }`)
		if err != nil {
			t.Fatal(err)
		}
		at := rapid.IntRange(0, len(list)).Draw(t, "at")
		with := append(append(append([]*acl.Policy{}, list[:at]...), no), list[at:]...)
		if acl.Compile(with...).May(auth.ListJobs, name) {
			t.Fatal("a denied namespace is open")
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`namespace "a" { policy = "read" }`, `{"namespace":{"a":{"policy":"read"}}}`, `node { policy = "deny" }`,
		`namespace "*" { variables { path "a/*" { capabilities = ["read"] } } }`, `{"namespace":[{"a":null}]}`, `{"node":{"policy":["${1}"]}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rules string) {
		p, err := acl.Parse(rules)
		if err != nil {
			return
		}
		a := acl.Compile(p)
		if a.May(auth.Management, "default") || a.MaySomewhere(auth.Management) {
			t.Error("a policy gave management")
		}
		for _, n := range p.Namespaces {
			if strings.ContainsAny(n.Name, "\x00 \n") {
				t.Errorf("%q was taken for a name", n.Name)
			}
		}
	})
}
