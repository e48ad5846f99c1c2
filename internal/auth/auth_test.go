package auth_test

import (
	"testing"

	"rockpool/internal/auth"
)

// in allows one scope in one namespace.
type in struct {
	scope  auth.Scope
	target string
}

func (r in) May(s auth.Scope, target string) bool               { return s == r.scope && target == r.target }
func (r in) MaySomewhere(s auth.Scope) bool                     { return s == r.scope }
func (r in) MayVariable(s auth.Scope, namespace, _ string) bool { return r.May(s, namespace) }

func TestWhatCallersMay(t *testing.T) {
	nobody, node := auth.Identity{}, auth.Identity{NodeID: "n"}
	management := auth.Identity{Management: true}
	reader := auth.Identity{Accessor: "a", Rights: in{auth.ReadJob, "x"}}
	for _, c := range []struct {
		name   string
		id     auth.Identity
		scope  auth.Scope
		target string
		want   bool
	}{
		{"everybody", nobody, auth.Public, "x", true},
		{"nobody", nobody, auth.ReadJob, "x", false},
		{"nobody has no token", nobody, auth.AnyToken, "x", false},
		{"management may all", management, auth.SubmitJob, "x", true},
		{"but speak for no node", management, auth.NodeSelf, "x", false},
		{"a node speaks for itself", node, auth.NodeSelf, "x", true},
		{"and for nothing else", node, auth.ReadJob, "x", false},
		{"in its namespace", reader, auth.ReadJob, "x", true},
		{"in another", reader, auth.ReadJob, "y", false},
		{"anywhere", reader, auth.ReadJob, auth.Everywhere, true},
		{"another scope anywhere", reader, auth.SubmitJob, auth.Everywhere, false},
		{"a token", reader, auth.AnyToken, "y", true},
		{"rights are never management", auth.Identity{Rights: in{auth.Management, "x"}}, auth.Management, "x", false},
		{"nor the gateway", auth.Identity{Rights: in{auth.Gateway, "x"}}, auth.Gateway, "x", false},
		{"the gateway's scope", auth.Identity{Scopes: map[auth.Scope]bool{auth.Gateway: true}}, auth.Gateway, "x", true},
	} {
		if got := c.id.MayIn(c.scope, c.target); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if nobody.MayVariable(auth.VariablesRead, "x", "p") || !management.MayVariable(auth.VariablesRead, "x", "p") {
		t.Error("variables")
	}
}
