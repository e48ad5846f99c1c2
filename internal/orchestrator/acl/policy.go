// Package acl is Nomad's policy language: policies are parsed and checked, compiled together, and asked what they allow.
//
// A policy names namespaces, paths of variables, node pools and host volumes by globs, in which a star stands for any characters. Of the globs that match a
// name one decides, the closest: a name without a star, else the glob with the most characters that are no star. Policies that say something about the same
// glob add up, but deny wins over all of them. What no rule allows is denied. The package is pure: it knows no token and no store.
//
// The language is described at https://developer.hashicorp.com/nomad/docs/secure/acl/policies. write-fs is an own capability.
package acl

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"

	"rockpool/internal/auth"
)

// Policy is a parsed policy. Capabilities have been spelled out: they are scopes of package auth, or deny.
type Policy struct {
	Namespaces []Namespace
	Pools      []Named
	Volumes    []Named
	Areas      map[string]string // node, agent, operator, quota and plugin to read, write, list or deny
}

// Namespace is what a policy says of namespaces that a glob matches.
type Namespace struct {
	Named
	Variables []Path
}

// Named gives capabilities to what a glob matches.
type Named struct {
	Name         string
	Capabilities []string
}

// Path gives capabilities on variables whose path a glob matches.
type Path struct {
	Path         string
	Capabilities []string
}

const (
	deny  = "deny"
	read  = "read"
	write = "write"

	// MaxRules is how long a policy may be, in bytes.
	MaxRules = 64 << 10
)

// areas are the blocks without a name and what their policies give.
var areas = map[string]map[string][]auth.Scope{
	"node":     {deny: {}, read: {auth.NodeRead}, write: {auth.NodeRead, auth.NodeWrite}},
	"agent":    {deny: {}, read: {auth.AgentRead}, write: {auth.AgentRead, auth.AgentWrite}},
	"operator": {deny: {}, read: {auth.OpRead}, write: {auth.OpRead, auth.OpWrite}},
	"quota":    {deny: {}, read: {auth.QuotaRead}, write: {auth.QuotaRead, auth.QuotaWrite}},
	"plugin":   {deny: {}, "list": {auth.PluginList}, read: {auth.PluginList, auth.PluginRead}},
}

var clusterScopes = func() map[auth.Scope]bool {
	m := map[auth.Scope]bool{}
	for _, policies := range areas {
		for _, scopes := range policies {
			for _, s := range scopes {
				m[s] = true
			}
		}
	}
	return m
}()

// kind is a sort of named block: the capabilities it knows, and what its policies stand for.
type kind struct {
	capabilities []string
	policies     map[string][]string
}

var (
	scaling = []string{"list-scaling-policies", "read-scaling-policy", "read-job-scaling"}
	reading = slices.Concat([]string{"list-jobs", "parse-job", "read-job", "csi-list-volume", "csi-read-volume", "host-volume-read"}, scaling)
	writing = slices.Concat(reading, []string{
		"scale-job", "submit-job", "dispatch-job", "read-logs", "read-fs", "write-fs", "alloc-exec", "alloc-lifecycle", "csi-write-volume",
		"csi-mount-volume", "submit-recommendation", "host-volume-create", "host-volume-register", "host-volume-write", "host-volume-delete",
	})
	namespaces = kind{
		slices.Concat(writing, []string{deny, "alloc-node-exec", "sentinel-override", "csi-register-plugin"}),
		map[string][]string{deny: {deny}, read: reading, write: writing, "scale": slices.Concat(scaling, []string{"scale-job"})},
	}
	paths = kind{[]string{"list", read, write, "destroy", deny}, nil}
	pools = kind{[]string{"delete", read, write, deny}, map[string][]string{deny: {deny}, read: {read}, write: {"delete", read, write}}}
	// What a policy of read or write means for volumes of hosts is which way they may be mounted.
	volumes = kind{[]string{"mount-readonly", "mount-readwrite", deny}, map[string][]string{
		deny: {deny}, read: {"mount-readonly"}, write: {"mount-readonly", "mount-readwrite"},
	}}
)

var (
	validName = regexp.MustCompile(`^[a-zA-Z0-9-_*]{1,128}$`)
	validPath = regexp.MustCompile(`^[a-zA-Z0-9-_~/*]{1,128}$`)
)

var (
	ruleSchema = func() *hcl.BodySchema {
		s := &hcl.BodySchema{}
		for _, t := range []string{"namespace", "node_pool", "host_volume"} {
			s.Blocks = append(s.Blocks, hcl.BlockHeaderSchema{Type: t, LabelNames: []string{"name"}})
		}
		for _, t := range []string{"node", "agent", "operator", "quota", "plugin"} {
			s.Blocks = append(s.Blocks, hcl.BlockHeaderSchema{Type: t})
		}
		return s
	}()
	namedSchema = &hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "policy"}, {Name: "capabilities"}}, Blocks: []hcl.BlockHeaderSchema{{Type: "variables"}},
	}
	variablesSchema = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "path", LabelNames: []string{"path"}}}}
	pathSchema      = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "capabilities", Required: true}}}
	areaSchema      = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "policy", Required: true}}}
)

// Parse reads a policy in HCL or JSON. An error names the place and what would be right there.
func Parse(rules string) (*Policy, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("the rules are longer than %d bytes", MaxRules)
	}
	var file *hcl.File
	var diags hcl.Diagnostics
	if strings.HasPrefix(strings.TrimSpace(rules), "{") {
		file, diags = json.Parse([]byte(rules), "rules")
	} else {
		file, diags = hclsyntax.ParseConfig([]byte(rules), "rules", hcl.InitialPos)
		if diags.HasErrors() {
			if again, more := hclsyntax.ParseConfig(spread([]byte(rules)), "rules", hcl.InitialPos); !more.HasErrors() {
				file, diags = again, nil
			}
		}
	}
	if diags.HasErrors() {
		return nil, diags
	}
	body, diags := file.Body.Content(ruleSchema)
	if diags.HasErrors() {
		return nil, diags
	}
	p := &Policy{Areas: map[string]string{}}
	for _, b := range body.Blocks {
		if err := p.block(b); err != nil {
			return nil, err
		}
	}
	if len(p.Namespaces)+len(p.Pools)+len(p.Volumes)+len(p.Areas) == 0 {
		return nil, fmt.Errorf("the rules say nothing: they need at least one block such as namespace \"default\" { policy = \"read\" }")
	}
	return p, nil
}

// spread puts each block on lines of its own. The first version of HCL, which many policies were written for, let them stand on one.
func spread(rules []byte) []byte {
	tokens, _ := hclsyntax.LexConfig(rules, "rules", hcl.InitialPos)
	var out []byte
	done := 0
	for _, t := range tokens {
		if t.Type == hclsyntax.TokenCBrace {
			out = append(append(out, rules[done:t.Range.Start.Byte]...), '\n')
			done = t.Range.Start.Byte
		}
		if t.Type == hclsyntax.TokenOBrace || t.Type == hclsyntax.TokenCBrace {
			out = append(append(out, rules[done:t.Range.End.Byte]...), '\n')
			done = t.Range.End.Byte
		}
	}
	return append(out, rules[done:]...)
}

func (p *Policy) block(b *hcl.Block) error {
	switch b.Type {
	case "namespace":
		n, inner, err := named(b, namespaces)
		if err != nil {
			return err
		}
		ns := Namespace{Named: n}
		for _, v := range inner.Blocks {
			list, err := variables(v)
			if err != nil {
				return err
			}
			ns.Variables = append(ns.Variables, list...)
		}
		if len(ns.Capabilities)+len(ns.Variables) == 0 {
			return at(b.DefRange, "namespace %q needs a policy, capabilities or variables", n.Name)
		}
		p.Namespaces = append(p.Namespaces, ns)
	case "node_pool", "host_volume":
		k, prefix := pools, "node-pool-"
		if b.Type == "host_volume" {
			k, prefix = volumes, "host-volume-"
		}
		n, inner, err := named(b, k)
		switch {
		case err != nil:
			return err
		case len(inner.Blocks) > 0:
			return at(b.DefRange, "%s %q has no variables", b.Type, n.Name)
		case len(n.Capabilities) == 0:
			return at(b.DefRange, "%s %q needs a policy or capabilities", b.Type, n.Name)
		}
		for i, c := range n.Capabilities {
			if c != deny {
				n.Capabilities[i] = prefix + c
			}
		}
		if b.Type == "node_pool" {
			p.Pools = append(p.Pools, n)
		} else {
			if !slices.Contains(n.Capabilities, deny) {
				n.Capabilities = append(n.Capabilities, string(auth.VolumeRead))
			}
			p.Volumes = append(p.Volumes, n)
		}
	default:
		body, diags := b.Body.Content(areaSchema)
		if diags.HasErrors() {
			return diags
		}
		attr := body.Attributes["policy"]
		policy, err := text(attr)
		if err != nil {
			return err
		}
		if _, ok := areas[b.Type][policy]; !ok {
			return at(attr.Range, "policy of %s is %q, but must be one of %s", b.Type, policy, strings.Join(sortedKeys(areas[b.Type]), ", "))
		}
		if old, twice := p.Areas[b.Type]; twice && old != policy {
			return at(b.DefRange, "%s is given twice, as %s and as %s", b.Type, old, policy)
		}
		p.Areas[b.Type] = policy
	}
	return nil
}

// named reads the block of a name: its policy is spelled out.
func named(b *hcl.Block, k kind) (Named, *hcl.BodyContent, error) {
	n := Named{Name: b.Labels[0]}
	if !validName.MatchString(n.Name) {
		return n, nil, at(b.DefRange, "%s %q: a name has 1 to 128 letters, digits, hyphens, underscores and stars", b.Type, n.Name)
	}
	body, diags := b.Body.Content(namedSchema)
	if diags.HasErrors() {
		return n, nil, diags
	}
	if attr := body.Attributes["policy"]; attr != nil {
		policy, err := text(attr)
		if err != nil {
			return n, nil, err
		}
		caps, ok := k.policies[policy]
		if !ok {
			return n, nil, at(attr.Range, "policy of %s %q is %q, but must be one of %s", b.Type, n.Name, policy, strings.Join(sortedKeys(k.policies), ", "))
		}
		n.Capabilities = slices.Clone(caps)
	}
	if attr := body.Attributes["capabilities"]; attr != nil {
		caps, err := list(attr, k.capabilities)
		if err != nil {
			return n, nil, err
		}
		n.Capabilities = append(n.Capabilities, caps...)
	}
	return n, body, nil
}

func variables(b *hcl.Block) ([]Path, error) {
	body, diags := b.Body.Content(variablesSchema)
	if diags.HasErrors() {
		return nil, diags
	}
	var out []Path
	for _, pb := range body.Blocks {
		v := Path{Path: strings.Trim(pb.Labels[0], "/")}
		if !validPath.MatchString(v.Path) {
			return nil, at(pb.DefRange, "path %q: a path of a variable has 1 to 128 letters, digits and -_~/ with stars", pb.Labels[0])
		}
		inner, diags := pb.Body.Content(pathSchema)
		if diags.HasErrors() {
			return nil, diags
		}
		caps, err := list(inner.Attributes["capabilities"], paths.capabilities)
		if err != nil {
			return nil, err
		}
		if len(caps) == 0 {
			return nil, at(pb.DefRange, "path %q needs capabilities", v.Path)
		}
		if slices.Contains(caps, read) {
			caps = append(caps, "list")
		}
		for _, c := range caps {
			if c == deny {
				v.Capabilities = []string{deny}
				break
			}
			v.Capabilities = append(v.Capabilities, "variables-"+c)
		}
		out = append(out, v)
	}
	return out, nil
}

// plain refuses what would have to be computed.
func plain(e hcl.Expression) error {
	native, ok := e.(hclsyntax.Expression)
	if !ok {
		return nil // of JSON, where nothing can be computed without a scope
	}
	var bad error
	_ = hclsyntax.VisitAll(native, func(n hclsyntax.Node) hcl.Diagnostics {
		switch n.(type) {
		case *hclsyntax.LiteralValueExpr, *hclsyntax.TemplateExpr, *hclsyntax.TupleConsExpr:
		default:
			bad = at(e.Range(), "only strings and lists of strings can stand here")
		}
		return nil
	})
	return bad
}

func text(a *hcl.Attribute) (string, error) {
	if err := plain(a.Expr); err != nil {
		return "", err
	}
	v, diags := a.Expr.Value(nil)
	if diags.HasErrors() {
		return "", diags
	}
	return str(a, v)
}

func str(a *hcl.Attribute, v cty.Value) (string, error) {
	if v.IsNull() || !v.IsKnown() || v.Type() != cty.String {
		return "", at(a.Range, "%s must be made of strings", a.Name)
	}
	return v.AsString(), nil
}

func list(a *hcl.Attribute, known []string) ([]string, error) {
	if err := plain(a.Expr); err != nil {
		return nil, err
	}
	v, diags := a.Expr.Value(nil)
	switch {
	case diags.HasErrors():
		return nil, diags
	case v.IsNull() || !v.IsKnown() || !v.Type().IsTupleType():
		return nil, at(a.Range, "%s must be a list of strings", a.Name)
	}
	var out []string
	for _, e := range v.AsValueSlice() {
		s, err := str(a, e)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(known, s) {
			return nil, at(a.Range, "capability %q is not known here, known are %s", s, strings.Join(known, ", "))
		}
		out = append(out, s)
	}
	return out, nil
}

func at(r hcl.Range, format string, args ...any) error {
	return fmt.Errorf("%s: %s", r, fmt.Sprintf(format, args...))
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
