package jobspec

import (
	"math"
	"math/big"
	"reflect"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// value evaluates an expression, leaving references that are not for us as text.
func (p *parser) value(e hclsyntax.Expression) cty.Value {
	switch x := e.(type) {
	case *hclsyntax.TemplateWrapExpr:
		if p.foreign(x.Wrapped) {
			return cty.StringVal(p.literal(x.Wrapped))
		}
	case *hclsyntax.TemplateExpr:
		var b strings.Builder
		for _, part := range x.Parts {
			if p.foreign(part) {
				b.WriteString(p.literal(part))
				continue
			}
			s, ok := text(p.value(part))
			if !ok {
				p.fail(part.Range(), "this cannot stand in a text")
				continue
			}
			b.WriteString(s)
			if p.spent += float64(len(s)); p.spent > maxTotal {
				p.fail(part.Range(), "this could become too large")
				return cty.DynamicVal
			}
		}
		return cty.StringVal(b.String())
	case *hclsyntax.TupleConsExpr:
		vals := make([]cty.Value, len(x.Exprs))
		for i, k := range x.Exprs {
			vals[i] = p.value(k)
		}
		return cty.TupleVal(vals)
	case *hclsyntax.ObjectConsExpr:
		vals := map[string]cty.Value{}
		for _, it := range x.Items {
			if !p.affordable(it.KeyExpr) {
				continue
			}
			k, diags := it.KeyExpr.Value(p.ctx)
			p.add(diags)
			key, ok := text(k)
			if !ok {
				p.fail(it.KeyExpr.Range(), "the key is not a text")
				continue
			}
			vals[key] = p.value(it.ValueExpr)
		}
		return cty.ObjectVal(vals)
	case *hclsyntax.ParenthesesExpr:
		return p.value(x.Expression)
	}
	if p.foreign(e) {
		p.fail(e.Range(), "%s is only known later; write it in a text: %q", p.source(e), p.literal(e))
		return cty.StringVal("")
	}
	if !p.affordable(e) {
		return cty.DynamicVal
	}
	v, diags := e.Value(p.ctx)
	p.add(diags)
	v, _ = v.UnmarkDeep()
	return v
}

// text converts a value to a text. A number of too many digits is none.
func text(v cty.Value) (string, bool) {
	if v.Type() == cty.Number && !v.IsNull() && v.IsKnown() && math.IsInf(size(v), 1) {
		return "", false
	}
	s, err := convert.Convert(v, cty.String)
	if err != nil || s.IsNull() || !s.IsKnown() {
		return "", false
	}
	return s.AsString(), true
}

// foreign reports whether an expression is a reference to something that is not known to job files.
func (p *parser) foreign(e hclsyntax.Expression) bool {
	t, ok := e.(*hclsyntax.ScopeTraversalExpr)
	if !ok {
		// An attribute name such as unique.platform-x.y parses as more than a reference.
		for _, v := range e.Variables() {
			if root := v.RootName(); root == "attr" || root == "meta" || root == "node" || root == "device" || root == "env" {
				return true
			}
		}
		return false
	}
	for ctx := p.ctx; ctx != nil; ctx = ctx.Parent() {
		if _, ok := ctx.Variables[t.Traversal.RootName()]; ok {
			return false
		}
	}
	return true
}

func (p *parser) source(e hclsyntax.Expression) string {
	r := e.Range()
	return string(r.SliceBytes(p.src[r.Filename]))
}

func (p *parser) literal(e hclsyntax.Expression) string { return "${" + p.source(e) + "}" }

var durationType = reflect.TypeFor[time.Duration]()

// assign converts a value to a field's type.
func (p *parser) assign(into reflect.Value, v cty.Value, name string, at hcl.Range) {
	if v.IsNull() || !v.IsWhollyKnown() {
		return
	}
	t := into.Type()
	switch {
	case t.Kind() == reflect.Pointer:
		e := reflect.New(t.Elem())
		p.assign(e.Elem(), v, name, at)
		into.Set(e)
	case t == durationType:
		p.duration(into, v, name, at)
	case t.Kind() == reflect.Interface:
		if g := plain(v); g != nil {
			into.Set(reflect.ValueOf(g))
		}
	case t.Kind() == reflect.String:
		if s, ok := text(v); !ok {
			p.fail(at, "%s must be a text", name)
		} else {
			into.SetString(s)
		}
	case t.Kind() == reflect.Bool:
		if b, err := convert.Convert(v, cty.Bool); err != nil {
			p.fail(at, "%s must be true or false", name)
		} else {
			into.SetBool(b.True())
		}
	case into.CanInt() || into.CanUint() || into.CanFloat():
		p.number(into, v, name, at)
	case t.Kind() == reflect.Slice:
		if !v.CanIterateElements() || v.Type().IsObjectType() || v.Type().IsMapType() {
			p.fail(at, "%s must be a list", name)
			return
		}
		into.Set(reflect.MakeSlice(t, 0, v.LengthInt()))
		for it := v.ElementIterator(); it.Next(); {
			_, ev := it.Element()
			e := reflect.New(t.Elem()).Elem()
			p.assign(e, ev, name, at)
			into.Set(reflect.Append(into, e))
		}
	case t.Kind() == reflect.Map:
		if !v.Type().IsObjectType() && !v.Type().IsMapType() {
			p.fail(at, "%s must be a map", name)
			return
		}
		into.Set(reflect.MakeMap(t))
		for it := v.ElementIterator(); it.Next(); {
			k, ev := it.Element()
			e := reflect.New(t.Elem()).Elem()
			p.assign(e, ev, name, at)
			into.SetMapIndex(reflect.ValueOf(k.AsString()), e)
		}
	default:
		p.fail(at, "%s cannot be read", name)
	}
}

func (p *parser) number(into reflect.Value, v cty.Value, name string, at hcl.Range) {
	n, err := convert.Convert(v, cty.Number)
	if err != nil {
		p.fail(at, "%s must be a number", name)
		return
	}
	f := n.AsBigFloat()
	if into.CanFloat() {
		x, _ := f.Float64()
		into.SetFloat(x)
		return
	}
	i, acc := f.Int64()
	switch {
	case acc != big.Exact || into.CanInt() && into.OverflowInt(i) || into.CanUint() && (i < 0 || into.OverflowUint(uint64(i))):
		p.fail(at, "%s must be a whole number that fits", name)
	case into.CanInt():
		into.SetInt(i)
	default:
		into.SetUint(uint64(i))
	}
}

// duration reads "30s", or a number of nanoseconds.
func (p *parser) duration(into reflect.Value, v cty.Value, name string, at hcl.Range) {
	if v.Type() != cty.String {
		p.number(into, v, name, at)
		return
	}
	d, err := time.ParseDuration(v.AsString())
	if err != nil {
		p.fail(at, "%s must be a duration such as \"30s\"", name)
		return
	}
	into.SetInt(int64(d))
}

// plain makes the value that JSON would have made.
func plain(v cty.Value) any {
	t := v.Type()
	switch {
	case v.IsNull() || !v.IsKnown():
		return nil
	case t == cty.String:
		return v.AsString()
	case t == cty.Bool:
		return v.True()
	case t == cty.Number:
		if i, acc := v.AsBigFloat().Int64(); acc == big.Exact {
			return int(i)
		}
		f, _ := v.AsBigFloat().Float64()
		return f
	case t.IsObjectType() || t.IsMapType():
		m := map[string]any{}
		for it := v.ElementIterator(); it.Next(); {
			k, e := it.Element()
			m[k.AsString()] = plain(e)
		}
		return m
	default:
		l := []any{}
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			l = append(l, plain(e))
		}
		return l
	}
}
