package jobspec

import (
	"cmp"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
)

// field is where a name of the file goes.
type field struct {
	value reflect.Value
	block bool
}

// fields reads the tags of a struct: what may stand in its block, and where its labels go.
func fields(v reflect.Value) (names map[string]field, labels []reflect.Value) {
	names = map[string]field{}
	for i := range v.NumField() {
		tag, ok := v.Type().Field(i).Tag.Lookup("hcl")
		if !ok {
			continue
		}
		name, kind, _ := strings.Cut(tag, ",")
		switch kind {
		case "label":
			labels = append(labels, v.Field(i))
		case "block":
			names[name] = field{v.Field(i), true}
		default:
			names[name] = field{v.Field(i), false}
		}
	}
	return names, labels
}

func ordered(attrs hclsyntax.Attributes) []*hclsyntax.Attribute {
	out := make([]*hclsyntax.Attribute, 0, len(attrs))
	for _, a := range attrs {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *hclsyntax.Attribute) int { return cmp.Compare(a.SrcRange.Start.Byte, b.SrcRange.Start.Byte) })
	return out
}

// body reads a block's contents into a struct.
func (p *parser) body(b *hclsyntax.Body, into reflect.Value) {
	names, _ := fields(into)
	for _, a := range ordered(b.Attributes) {
		f, ok := names[a.Name]
		switch {
		case p.shorthand(into, a):
		case !ok:
			p.fail(a.NameRange, "unknown attribute %q", a.Name)
		case f.block && f.value.Kind() != reflect.Map:
			p.fail(a.NameRange, "%q is a block: write %s { … }", a.Name, a.Name)
		default:
			p.assign(f.value, p.value(a.Expr), a.Name, a.Expr.Range())
		}
	}
	for _, k := range p.expand(b.Blocks) {
		outer := p.ctx
		if k.ctx != nil {
			p.ctx = k.ctx
		}
		p.nested(k.Block, names)
		p.ctx = outer
	}
}

// nested reads one block of a struct's body.
func (p *parser) nested(k *hclsyntax.Block, names map[string]field) {
	f, ok := names[k.Type]
	switch {
	case !ok:
		p.fail(k.TypeRange, "unknown block %q", k.Type)
	case !f.block:
		p.fail(k.TypeRange, "%q is an attribute: write %s = …", k.Type, k.Type)
	default:
		p.block(k, f.value)
	}
}

// block reads one block into a field: a struct once, a slice of structs again and again, a map by its attributes or by label.
func (p *parser) block(b *hclsyntax.Block, into reflect.Value) {
	t := into.Type()
	switch {
	case t.Kind() == reflect.Slice:
		e := reflect.New(t.Elem()).Elem()
		p.block(b, e)
		into.Set(reflect.Append(into, e))
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		if !into.IsNil() {
			p.fail(b.TypeRange, "block %q may stand here once", b.Type)
		}
		into.Set(reflect.New(t.Elem()))
		p.labelled(b, into.Elem(), b.Labels)
	case t.Kind() == reflect.Struct:
		p.labelled(b, into, b.Labels)
	case t.Kind() == reflect.Map && indirect(t.Elem()).Kind() == reflect.Struct:
		if len(b.Labels) == 0 {
			p.fail(b.TypeRange, "block %q needs a name", b.Type)
			return
		}
		e := reflect.New(t.Elem()).Elem()
		if e.Kind() == reflect.Pointer {
			e.Set(reflect.New(t.Elem().Elem()))
		}
		p.labelled(b, reflect.Indirect(e), b.Labels)
		if into.IsNil() {
			into.Set(reflect.MakeMap(t))
		}
		into.SetMapIndex(reflect.ValueOf(b.Labels[0]), e)
	case t.Kind() == reflect.Map:
		p.mapped(b.Body, into)
	default:
		p.fail(b.TypeRange, "block %q cannot be read", b.Type)
	}
}

func indirect(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

func (p *parser) labelled(b *hclsyntax.Block, into reflect.Value, labels []string) {
	_, places := fields(into)
	if len(labels) != len(places) && (len(places) > 0 || into.Kind() != reflect.Struct || len(labels) > 1) {
		p.fail(b.TypeRange, "block %q has %d names, not %d", b.Type, len(places), len(labels))
		return
	}
	for i, l := range places {
		if l.Kind() == reflect.Pointer {
			l.Set(reflect.New(l.Type().Elem()))
			l = l.Elem()
		}
		l.SetString(labels[i])
	}
	p.body(b.Body, into)
}

// mapped reads free-form contents: attributes, and blocks as lists of maps.
func (p *parser) mapped(b *hclsyntax.Body, into reflect.Value) {
	if into.IsNil() {
		into.Set(reflect.MakeMap(into.Type()))
	}
	elem := into.Type().Elem()
	for _, a := range ordered(b.Attributes) {
		e := reflect.New(elem).Elem()
		p.assign(e, p.value(a.Expr), a.Name, a.Expr.Range())
		into.SetMapIndex(reflect.ValueOf(a.Name), e)
	}
	for _, k := range p.expand(b.Blocks) {
		if elem.Kind() != reflect.Interface {
			p.fail(k.TypeRange, "unknown block %q", k.Type)
			continue
		}
		outer := p.ctx
		if k.ctx != nil {
			p.ctx = k.ctx
		}
		m := map[string]any{}
		inner := m
		for _, l := range k.Labels {
			next := map[string]any{}
			inner[l] = []map[string]any{next}
			inner = next
		}
		p.mapped(k.Body, reflect.ValueOf(&inner).Elem())
		p.ctx = outer
		list, _ := into.Interface().(map[string]any)[k.Type].([]map[string]any)
		into.SetMapIndex(reflect.ValueOf(k.Type), reflect.ValueOf(append(list, m)))
	}
}

// shorthand reads the forms of a constraint or an affinity in which the operand is an attribute of its own.
func (p *parser) shorthand(into reflect.Value, a *hclsyntax.Attribute) bool {
	var operand, right *string
	switch c := into.Addr().Interface().(type) {
	case *api.Constraint:
		operand, right = &c.Operand, &c.RTarget
		switch a.Name {
		case "distinct_hosts":
			var on bool
			p.assign(reflect.ValueOf(&on).Elem(), p.value(a.Expr), a.Name, a.Expr.Range())
			if on {
				c.Operand = a.Name
			}
			return true
		case "distinct_property":
			c.Operand = a.Name
			p.assign(reflect.ValueOf(&c.LTarget).Elem(), p.value(a.Expr), a.Name, a.Expr.Range())
			return true
		case "is_set", "is_not_set":
			c.Operand = a.Name
			p.assign(reflect.ValueOf(&c.LTarget).Elem(), p.value(a.Expr), a.Name, a.Expr.Range())
			return true
		}
	case *api.Affinity:
		operand, right = &c.Operand, &c.RTarget
	default:
		return false
	}
	switch a.Name {
	case "regexp", "version", "semver", "set_contains", "set_contains_all", "set_contains_any":
		*operand = a.Name
		p.assign(reflect.ValueOf(right).Elem(), p.value(a.Expr), a.Name, a.Expr.Range())
		return true
	}
	return false
}
