package sched

import (
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-version"

	"rockpool/internal/orchestrator/model"
)

// Operands that concern the allocations of a job rather than a node alone.
const (
	opDistinctHosts    = "distinct_hosts"
	opDistinctProperty = "distinct_property"
)

// resolve gives a target its value on a node: ${node.…}, ${attr.…} and ${meta.…} are looked up, everything else is literal.
func resolve(n *model.Node, target string) (string, bool) {
	if !strings.HasPrefix(target, "${") || !strings.HasSuffix(target, "}") {
		return target, true
	}
	name := target[2 : len(target)-1]
	switch name {
	case "node.unique.id":
		return n.ID, true
	case "node.unique.name":
		return n.Name, true
	case "node.datacenter":
		return n.Datacenter, true
	case "node.class":
		return n.NodeClass, n.NodeClass != ""
	case "node.pool":
		return n.NodePool, true
	case "node.region":
		return "global", true
	}
	if k, ok := strings.CutPrefix(name, "attr."); ok {
		v, ok := n.Attributes[k]
		return v, ok
	}
	if k, ok := strings.CutPrefix(name, "meta."); ok {
		v, ok := n.Meta[k]
		return v, ok
	}
	return "", false
}

// Matches reports whether a node meets a condition.
func Matches(n *model.Node, left, operand, right string) bool {
	l, lok := resolve(n, left)
	r, rok := resolve(n, right)
	return compare(l, lok, operand, r, rok)
}

func compare(l string, lok bool, operand, r string, rok bool) bool {
	switch operand {
	case opDistinctHosts, opDistinctProperty:
		return true // looked at with the allocations
	case "is_set", "attribute_is_set":
		return lok
	case "is_not_set", "attribute_is_not_set":
		return !lok
	case "!=", "not":
		return l != r || lok != rok
	}
	if !lok || !rok {
		return false
	}
	switch operand {
	case "", "=", "==", "is":
		return l == r
	case "<", "<=", ">", ">=":
		return order(l, operand, r)
	case "regexp":
		re := expression(r)
		return re != nil && re.MatchString(l)
	case "version":
		return meets(l, r)
	case "semver":
		return meetsSemver(l, r)
	case "set_contains", "set_contains_all":
		have := set(l)
		for w := range set(r) {
			if !have[w] {
				return false
			}
		}
		return true
	case "set_contains_any":
		have := set(l)
		for w := range set(r) {
			if have[w] {
				return true
			}
		}
	}
	return false
}

// order compares as numbers where both are numbers, else as text.
func order(l, operand, r string) bool {
	c := strings.Compare(l, r)
	if a, err := strconv.ParseFloat(l, 64); err == nil {
		if b, err := strconv.ParseFloat(r, 64); err == nil {
			switch {
			case a < b:
				c = -1
			case a > b:
				c = 1
			default:
				c = 0
			}
		}
	}
	switch operand {
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	}
	return c >= 0
}

func meets(l, r string) bool {
	v, err := version.NewVersion(l)
	if err != nil {
		return false
	}
	c, err := version.NewConstraint(r)
	return err == nil && c.Check(v)
}

// semverOps are the comparisons of the operand semver, the longer names first.
var semverOps = []struct {
	name string
	ok   func(c int) bool
}{
	{">=", func(c int) bool { return c >= 0 }}, {"<=", func(c int) bool { return c <= 0 }}, {"!=", func(c int) bool { return c != 0 }},
	{"=", func(c int) bool { return c == 0 }}, {">", func(c int) bool { return c > 0 }}, {"<", func(c int) bool { return c < 0 }},
	{"", func(c int) bool { return c == 0 }},
}

// meetsSemver compares by the rules of Semantic Versioning 2.0: unlike with version, a pre-release is simply before its release, so it meets ">= " an
// older one. The operator ~> does not exist there.
func meetsSemver(l, r string) bool {
	v, err := version.NewSemver(l)
	if err != nil {
		return false
	}
	for part := range strings.SplitSeq(r, ",") {
		part = strings.TrimSpace(part)
		for _, op := range semverOps {
			if rest, is := strings.CutPrefix(part, op.name); is {
				w, err := version.NewSemver(strings.TrimSpace(rest))
				if err != nil || !op.ok(v.Compare(w)) {
					return false
				}
				break
			}
		}
	}
	return true
}

// expressions keeps what was compiled, as long as it is not too much: a job's expression is matched against many nodes.
var expressions struct {
	sync.Mutex
	of map[string]*regexp.Regexp // nil = it does not compile
}

const keptExpressions = 256

func expression(text string) *regexp.Regexp {
	expressions.Lock()
	defer expressions.Unlock()
	re, known := expressions.of[text]
	if !known {
		if len(expressions.of) >= keptExpressions || expressions.of == nil {
			expressions.of = map[string]*regexp.Regexp{}
		}
		re, _ = regexp.Compile(text) // validation has told the user
		expressions.of[text] = re
	}
	return re
}

func set(s string) map[string]bool {
	m := map[string]bool{}
	for p := range strings.SplitSeq(s, ",") {
		m[strings.TrimSpace(p)] = true
	}
	return m
}

// Operands are those that a constraint may have; validation uses it.
var Operands = map[string]bool{
	"": true, "=": true, "==": true, "is": true, "!=": true, "not": true, "<": true, "<=": true, ">": true, ">=": true,
	"regexp": true, "version": true, "semver": true, "set_contains": true, "set_contains_all": true, "set_contains_any": true,
	"is_set": true, "is_not_set": true, "attribute_is_set": true, "attribute_is_not_set": true,
	opDistinctHosts: true, opDistinctProperty: true,
}
