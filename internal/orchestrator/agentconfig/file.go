package agentconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"gopkg.in/yaml.v3"
)

// entry is one key of a file, whatever its syntax.
type entry struct {
	key    string
	labels []string
	line   int
	value  any     // string, bool, *big.Float, []any; nil for a block
	block  []entry // of a block or a map
}

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Load reads files and directories in their order, and checks the whole. In a directory the files that end in .hcl, .yaml or .yml are read by name.
func Load(paths ...string) (Config, error) {
	c := Default()
	var problems []error
	for _, p := range paths {
		files, err := expand(p)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		for _, name := range files {
			data, err := read(name)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			problems = append(problems, c.Merge(name, data)...)
		}
	}
	if len(problems) == 0 {
		problems = c.Check()
	}
	return c, errors.Join(problems...)
}

func expand(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.Type()&fs.ModeDir == 0 && slices.Contains([]string{".hcl", ".yaml", ".yml"}, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(path, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("configuration: %s holds no file that ends in .hcl, .yaml or .yml", path)
	}
	return out, nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("configuration: %s is larger than %d bytes", path, maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return data, nil
}

// Merge puts the text of one file over c. The syntax is YAML where name ends in .yaml or .yml, HCL otherwise.
func (c *Config) Merge(name string, data []byte) []error {
	var tree []entry
	var problems []error
	switch filepath.Ext(name) {
	case ".yaml", ".yml":
		tree, problems = parseYAML(name, data)
	default:
		tree, problems = parseHCL(name, data)
	}
	if len(problems) > 0 {
		return problems
	}
	d := decoder{file: name}
	d.into(c, tree)
	return d.problems
}

func parseHCL(name string, data []byte) ([]entry, []error) {
	file, diags := hclsyntax.ParseConfig(data, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, problemsOf(diags)
	}
	return bodyOf(file.Body.(*hclsyntax.Body))
}

func problemsOf(diags hcl.Diagnostics) (out []error) {
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		where := ""
		if d.Subject != nil {
			where = fmt.Sprintf("%s:%d: ", d.Subject.Filename, d.Subject.Start.Line)
		}
		out = append(out, fmt.Errorf("%s%s; %s", where, d.Summary, d.Detail))
	}
	return out
}

func bodyOf(b *hclsyntax.Body) (out []entry, problems []error) {
	out = []entry{} // not nil: an empty block is a block
	for _, a := range b.Attributes {
		if !constant(a.Expr) {
			r := a.Expr.Range()
			problems = append(problems, fmt.Errorf("%s:%d: %s: a plain value is needed here, there is nothing to refer to or to compute", r.Filename, r.Start.Line, a.Name))
			continue
		}
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() {
			problems = append(problems, problemsOf(diags)...)
			continue
		}
		e := entry{key: a.Name, line: a.NameRange.Start.Line}
		if t := v.Type(); t.IsObjectType() || t.IsMapType() {
			e.block = mapOf(v, e.line)
		} else {
			e.value = plain(v)
		}
		out = append(out, e)
	}
	for _, k := range b.Blocks {
		inner, p := bodyOf(k.Body)
		problems = append(problems, p...)
		out = append(out, entry{key: k.Type, labels: k.Labels, line: k.TypeRange.Start.Line, block: inner})
	}
	slices.SortStableFunc(out, func(a, b entry) int { return a.line - b.line })
	return out, problems
}

// constant reports whether an expression is a value as it stands.
func constant(e hclsyntax.Expression) bool {
	switch x := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return true
	case *hclsyntax.TemplateExpr:
		return x.IsStringLiteral() || len(x.Parts) == 0
	case *hclsyntax.UnaryOpExpr:
		return constant(x.Val)
	case *hclsyntax.TupleConsExpr:
		return !slices.ContainsFunc(x.Exprs, func(e hclsyntax.Expression) bool { return !constant(e) })
	case *hclsyntax.ObjectConsExpr:
		return !slices.ContainsFunc(x.Items, func(i hclsyntax.ObjectConsItem) bool {
			key, isKey := i.KeyExpr.(*hclsyntax.ObjectConsKeyExpr)
			bare := isKey && !key.ForceNonLiteral && hcl.ExprAsKeyword(key.Wrapped) != ""
			return !bare && !(isKey && constant(key.Wrapped)) || !constant(i.ValueExpr)
		})
	}
	return false
}

// mapOf are the entries of a map that is written as a value. They are blocks where they are maps again.
func mapOf(v cty.Value, line int) []entry {
	out := []entry{}
	for it := v.ElementIterator(); it.Next(); {
		k, x := it.Element()
		e := entry{key: k.AsString(), line: line}
		if t := x.Type(); t.IsObjectType() || t.IsMapType() {
			e.block = mapOf(x, line)
		} else {
			e.value = plain(x)
		}
		out = append(out, e)
	}
	return out
}

func plain(v cty.Value) any {
	switch {
	case v.IsNull() || !v.IsWhollyKnown():
		return nil
	case v.Type() == cty.String:
		return v.AsString()
	case v.Type() == cty.Bool:
		return v.True()
	case v.Type() == cty.Number:
		return v.AsBigFloat()
	case v.CanIterateElements():
		out := []any{}
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			out = append(out, plain(e))
		}
		return out
	}
	return nil
}

func parseYAML(name string, data []byte) ([]entry, []error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, []error{fmt.Errorf("%s: %w", name, err)}
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return nil, []error{fmt.Errorf("%s:%d: a mapping of keys to values is needed here", name, doc.Content[0].Line)}
	}
	return mappingOf(name, doc.Content[0])
}

func mappingOf(name string, m *yaml.Node) (out []entry, problems []error) {
	seen := map[string]bool{}
	out = []entry{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, v := m.Content[i], m.Content[i+1]
		if seen[key.Value] {
			problems = append(problems, fmt.Errorf("%s:%d: %s is given twice", name, key.Line, key.Value))
		}
		seen[key.Value] = true
		e := entry{key: key.Value, line: key.Line}
		switch v.Kind {
		case yaml.MappingNode:
			inner, p := mappingOf(name, v)
			e.block = inner
			problems = append(problems, p...)
		case yaml.SequenceNode:
			list := []any{}
			for _, x := range v.Content {
				s, err := scalarOf(x)
				if err != nil {
					problems = append(problems, fmt.Errorf("%s:%d: %s: %w", name, x.Line, key.Value, err))
				}
				list = append(list, s)
			}
			e.value = list
		case yaml.ScalarNode:
			s, err := scalarOf(v)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s:%d: %s: %w", name, v.Line, key.Value, err))
			}
			e.value = s
		default:
			problems = append(problems, fmt.Errorf("%s:%d: %s: aliases are not read here", name, v.Line, key.Value))
		}
		out = append(out, e)
	}
	return out, problems
}

func scalarOf(n *yaml.Node) (any, error) {
	if n.Kind != yaml.ScalarNode {
		return nil, errors.New("a single value is needed here")
	}
	switch n.Tag {
	case "!!null":
		return nil, nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true"), nil
	case "!!int", "!!float":
		f, _, err := big.ParseFloat(n.Value, 0, 64, big.ToNearestEven)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", n.Value)
		}
		return f, nil
	}
	return n.Value, nil
}
