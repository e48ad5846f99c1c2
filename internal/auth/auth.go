// Package auth says who is calling and what a caller may do. Tokens are compared in constant time.
package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
)

// Scope is a right that a route asks for. The zero scope is refused when a route table is built, so that no route is open
// by oversight.
type Scope string

// Scopes. Those of the orchestrator are named after Nomad's capabilities.
const (
	Public     Scope = "public"     // everybody, also without a token
	Gateway    Scope = "gateway"    // the gateway's one token
	ListJobs   Scope = "list-jobs"  // namespace
	ReadJob    Scope = "read-job"   // namespace
	SubmitJob  Scope = "submit-job" // namespace
	ParseJob   Scope = "parse-job"  // namespace
	AllocLife  Scope = "alloc-lifecycle"
	AllocExec  Scope = "alloc-exec"
	ReadFS     Scope = "read-fs"
	WriteFS    Scope = "write-fs" // ours: Nomad has no way to write files
	NodeRead   Scope = "node-read"
	NodeWrite  Scope = "node-write"
	AgentRead  Scope = "agent-read"
	AgentWrite Scope = "agent-write"
	OpRead     Scope = "operator-read"
	OpWrite    Scope = "operator-write"
	NodeSelf   Scope = "node-self" // a node's own agent, proved by its secret
	Management Scope = "management"
)

// Identity is a caller.
type Identity struct {
	Name       string
	Management bool           // may do everything but speak for a node
	Scopes     map[Scope]bool // nil = none
	NodeID     string         // the node that proved to be itself, if any
}

// May reports whether the caller has scope s.
func (i Identity) May(s Scope) bool {
	switch s {
	case Public:
		return true
	case NodeSelf:
		return i.NodeID != ""
	}
	return i.Management || i.Scopes[s]
}

// MayIn is May for something that lives in a namespace. A route's own check asks May with the namespace of the request unknown; a handler asks MayIn once
// it knows where the object lives, and for each object of a list.
func (i Identity) MayIn(s Scope, namespace string) bool { return i.May(s) }

// Authenticator finds out who sent a request. An error is of kind Unauthenticated or Forbidden, as the wire wants it; a request
// without a token is an anonymous Identity where that is allowed.
type Authenticator interface {
	Authenticate(r *http.Request) (Identity, error)
}

// Func makes a function an Authenticator.
type Func func(r *http.Request) (Identity, error)

// Authenticate calls f.
func (f Func) Authenticate(r *http.Request) (Identity, error) { return f(r) }

// TokenEqual compares in time that depends on neither content nor length.
func TokenEqual(given, want string) bool {
	g, w := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(g[:], w[:]) == 1
}
