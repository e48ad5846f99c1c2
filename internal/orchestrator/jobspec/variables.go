package jobspec

import (
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// evaluate makes the context of expressions: variables, then locals, whatever their order.
func (p *parser) evaluate(body *hclsyntax.Body, variables string) {
	p.ctx = &hcl.EvalContext{Functions: functions, Variables: map[string]cty.Value{"var": cty.EmptyObjectVal, "local": cty.EmptyObjectVal}}
	vars, given := map[string]cty.Value{}, p.given(variables)
	declared := map[string]bool{}
	declare := func(name string, at hcl.Range) bool {
		if declared[name] {
			p.fail(at, "variable %q is declared twice", name)
			return false
		}
		declared[name] = true
		return true
	}
	for _, b := range body.Blocks {
		switch b.Type {
		case "variable":
			if len(b.Labels) != 1 {
				p.fail(b.TypeRange, "a variable has a name: variable \"name\" { … }")
			} else if declare(b.Labels[0], b.TypeRange) {
				vars[b.Labels[0]] = p.variable(b, given)
			}
		case "variables": // names with their defaults
			for _, a := range ordered(b.Body.Attributes) {
				if !declare(a.Name, a.NameRange) {
					continue
				}
				v, ok := given[a.Name]
				if !ok {
					v = p.value(a.Expr)
				}
				vars[a.Name] = v
			}
		}
		p.ctx.Variables["var"] = cty.ObjectVal(vars)
	}
	for _, name := range sorted(given) {
		if !declared[name] {
			p.errors = append(p.errors, &undeclared{name})
		}
	}
	p.locals(body)
}

type undeclared struct{ name string }

func (u *undeclared) Error() string {
	return "a value is given for variable \"" + u.name + "\", which the file does not declare"
}

func sorted(m map[string]cty.Value) []string {
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

// variable is the value of a declared variable: the given one, else its default, of the type that is declared.
func (p *parser) variable(b *hclsyntax.Block, given map[string]cty.Value) cty.Value {
	name, want := b.Labels[0], cty.DynamicPseudoType
	for _, a := range ordered(b.Body.Attributes) {
		switch a.Name {
		case "default", "description", "sensitive":
		case "type":
			var diags hcl.Diagnostics
			want, diags = typeexpr.TypeConstraint(a.Expr)
			p.add(diags)
			if diags.HasErrors() {
				want = cty.DynamicPseudoType
			}
		default:
			p.fail(a.NameRange, "a variable has no attribute %q, but type, default, description and sensitive", a.Name)
		}
	}
	v, ok := given[name]
	switch d := b.Body.Attributes["default"]; {
	case ok:
	case d != nil:
		v = p.value(d.Expr)
	default:
		p.fail(b.TypeRange, "variable %q has neither a value nor a default", name)
		return cty.DynamicVal
	}
	if converted, err := convert.Convert(v, want); err != nil {
		p.fail(b.TypeRange, "variable %q is not of its type: %v", name, err)
	} else {
		v = converted
	}
	for _, k := range b.Body.Blocks {
		if k.Type != "validation" {
			p.fail(k.TypeRange, "a variable has no block %q", k.Type)
			continue
		}
		p.validate(k, name, v)
	}
	return v
}

// validate asks a variable's own condition.
func (p *parser) validate(b *hclsyntax.Block, name string, v cty.Value) {
	cond, message := b.Body.Attributes["condition"], b.Body.Attributes["error_message"]
	if cond == nil || message == nil {
		p.fail(b.TypeRange, "a validation has a condition and an error_message")
		return
	}
	outer := p.ctx
	p.ctx = outer.NewChild()
	p.ctx.Variables = map[string]cty.Value{"var": cty.ObjectVal(map[string]cty.Value{name: v})}
	ok, text := p.value(cond.Expr), p.value(message.Expr)
	p.ctx = outer
	switch {
	case ok.IsNull() || !ok.IsKnown() || ok.Type() != cty.Bool:
		p.fail(cond.SrcRange, "a condition must be true or false")
	case ok.False() && text.IsKnown() && !text.IsNull() && text.Type() == cty.String:
		p.fail(b.TypeRange, "variable %q: %s", name, text.AsString())
	case ok.False():
		p.fail(b.TypeRange, "variable %q is refused by its validation", name)
	}
}

// locals evaluates each once what it refers to is known.
func (p *parser) locals(body *hclsyntax.Body) {
	var waiting []*hclsyntax.Attribute
	names := map[string]bool{}
	for _, b := range body.Blocks {
		if b.Type != "locals" {
			continue
		}
		for _, a := range ordered(b.Body.Attributes) {
			if names[a.Name] {
				p.fail(a.NameRange, "local %q is given twice", a.Name)
				continue
			}
			names[a.Name] = true
			waiting = append(waiting, a)
		}
	}
	known := map[string]cty.Value{}
	for len(waiting) > 0 {
		var later []*hclsyntax.Attribute
		for _, a := range waiting {
			if needs(a.Expr, names, known) {
				later = append(later, a)
				continue
			}
			known[a.Name] = p.value(a.Expr)
			p.ctx.Variables["local"] = cty.ObjectVal(known)
		}
		if len(later) == len(waiting) {
			for _, a := range later {
				p.fail(a.NameRange, "local %q refers to itself, by way of others or not", a.Name)
			}
			return
		}
		waiting = later
	}
}

// needs reports whether an expression refers to a local that is not known yet.
func needs(e hclsyntax.Expression, names map[string]bool, known map[string]cty.Value) bool {
	return slices.ContainsFunc(e.Variables(), func(t hcl.Traversal) bool {
		if t.RootName() != "local" || len(t) < 2 {
			return t.RootName() == "local" && len(known) < len(names)
		}
		a, ok := t[1].(hcl.TraverseAttr)
		_, have := known[a.Name]
		return ok && names[a.Name] && !have
	})
}

// given reads the values of a file of variables. What is given again wins.
func (p *parser) given(text string) map[string]cty.Value {
	out := map[string]cty.Value{}
	if text == "" {
		return out
	}
	const name = "variables.hcl"
	p.src[name] = []byte(text)
	file, diags := hclsyntax.ParseConfig([]byte(lastWins(text)), name, hcl.InitialPos)
	p.add(diags)
	if diags.HasErrors() {
		return out
	}
	p.src[name] = file.Bytes
	body := file.Body.(*hclsyntax.Body)
	for _, a := range ordered(body.Attributes) {
		out[a.Name] = p.value(a.Expr)
	}
	for _, b := range body.Blocks {
		p.fail(b.TypeRange, "a file of variables has no block %q", b.Type)
	}
	return out
}

// lastWins blanks out assignments that a later one of the same name replaces, which HCL itself would refuse: the text may be several files, one after the other. Lines
// keep their numbers.
func lastWins(text string) string {
	tokens, diags := hclsyntax.LexConfig([]byte(text), "variables.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		return text // it is refused with the places where it is parsed
	}
	type span struct{ from, to int }
	last := map[string]span{}
	out := []byte(text)
	blank := func(s span) {
		for i := s.from; i < s.to && i < len(out); i++ {
			if out[i] != '\n' {
				out[i] = ' '
			}
		}
	}
	depth, open := 0, ""
	start := 0
	for i, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd:
			depth--
		case hclsyntax.TokenIdent:
			if depth == 0 && open == "" && i+1 < len(tokens) && tokens[i+1].Type == hclsyntax.TokenEqual {
				open, start = string(t.Bytes), t.Range.Start.Byte
			}
		case hclsyntax.TokenNewline, hclsyntax.TokenEOF:
			if depth == 0 && open != "" {
				if old, ok := last[open]; ok {
					blank(old)
				}
				last[open] = span{start, t.Range.Start.Byte}
				open = ""
			}
		}
	}
	return string(out)
}
