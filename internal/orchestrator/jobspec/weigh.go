package jobspec

import (
	"fmt"
	"math"
	"regexp"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// A job file may come from anybody who may send jobs, and a few lines can stand for gigabytes: texts that double, loops in loops, numbers with millions of digits.
// So an expression is weighed before it is evaluated: how large, in bytes, could what it makes become at most?
const (
	maxWeight = 16 << 20 // of one expression
	maxTotal  = 64 << 20 // of all of a file
	maxDigits = 2000     // of a number
	perValue  = 16       // that every value weighs at least
)

// The parser of HCL and everything after it go down into an expression by recursion. So its depth is bounded before it is parsed.
const (
	maxNesting   = 100
	maxOperators = 10_000 // of a file; a chain of them is as deep as it is long
)

// shallow refuses a text that is nested too deeply.
func shallow(name string, src []byte) error {
	tokens, _ := hclsyntax.LexConfig(src, name, hcl.InitialPos) // what is wrong with it is told by the parser
	depth, operators := 0, 0
	var last hclsyntax.TokenType
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOBrack:
			if last == hclsyntax.TokenCBrack {
				operators++
			}
			depth++
		case hclsyntax.TokenOBrace, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd:
			depth--
		case hclsyntax.TokenPlus, hclsyntax.TokenMinus, hclsyntax.TokenStar, hclsyntax.TokenSlash, hclsyntax.TokenPercent, hclsyntax.TokenAnd, hclsyntax.TokenOr,
			hclsyntax.TokenBang, hclsyntax.TokenQuestion, hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual, hclsyntax.TokenLessThan, hclsyntax.TokenGreaterThan,
			hclsyntax.TokenLessThanEq, hclsyntax.TokenGreaterThanEq:
			operators++
		}
		last = t.Type
		if depth > maxNesting || operators > maxOperators {
			return fmt.Errorf("%s:%d,%d: the file is nested more than %d deep, or has more than %d operators", name, t.Range.Start.Line, t.Range.Start.Column, maxNesting, maxOperators)
		}
	}
	return nil
}

// affordable reports whether an expression may be evaluated, and says why not.
func (p *parser) affordable(e hclsyntax.Expression) bool {
	w := p.weight(e, nil)
	p.spent += w
	if w <= maxWeight && p.spent <= maxTotal {
		return true
	}
	p.fail(e.Range(), "this could become too large: more than %d bytes, or a number of more than %d digits", maxWeight, maxDigits)
	return false
}

// weight is an upper bound of the size of what e makes. inner are the weights of variables of loops around it.
func (p *parser) weight(e hclsyntax.Expression, inner map[string]float64) float64 {
	sum := func(list ...hclsyntax.Expression) float64 {
		w := float64(perValue)
		for _, x := range list {
			w += p.weight(x, inner)
		}
		return w
	}
	switch x := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return size(x.Val)
	case *hclsyntax.TemplateExpr:
		return sum(x.Parts...)
	case *hclsyntax.TemplateWrapExpr:
		return p.weight(x.Wrapped, inner)
	case *hclsyntax.TemplateJoinExpr:
		return p.weight(x.Tuple, inner)
	case *hclsyntax.ParenthesesExpr:
		return p.weight(x.Expression, inner)
	case *hclsyntax.ObjectConsKeyExpr:
		return p.weight(x.Wrapped, inner)
	case *hclsyntax.TupleConsExpr:
		return sum(x.Exprs...)
	case *hclsyntax.ObjectConsExpr:
		w := float64(perValue)
		for _, it := range x.Items {
			w += sum(it.KeyExpr, it.ValueExpr)
		}
		return w
	case *hclsyntax.ConditionalExpr:
		return sum(x.Condition, x.TrueResult, x.FalseResult)
	case *hclsyntax.BinaryOpExpr:
		return number(sum(x.LHS, x.RHS))
	case *hclsyntax.UnaryOpExpr:
		return sum(x.Val)
	case *hclsyntax.RelativeTraversalExpr:
		return p.weight(x.Source, inner)
	case *hclsyntax.IndexExpr:
		return sum(x.Collection, x.Key)
	case *hclsyntax.ScopeTraversalExpr:
		return p.reference(x.Traversal, inner)
	case *hclsyntax.FunctionCallExpr:
		return p.call(x, inner)
	case *hclsyntax.ForExpr:
		in := p.weight(x.CollExpr, inner)
		each := map[string]float64{x.ValVar: in}
		if x.KeyVar != "" {
			each[x.KeyVar] = in
		}
		for k, v := range inner {
			if _, shadowed := each[k]; !shadowed {
				each[k] = v
			}
		}
		body := p.weight(x.ValExpr, each)
		for _, part := range []hclsyntax.Expression{x.KeyExpr, x.CondExpr} {
			if part != nil {
				body += p.weight(part, each)
			}
		}
		return in + in/perValue*body
	case *hclsyntax.SplatExpr:
		in := p.weight(x.Source, inner)
		return in + in/perValue*perValue
	case *hclsyntax.AnonSymbolExpr:
		return perValue // it is weighed as the source of its splat
	}
	return math.Inf(1) // what is not known is not evaluated
}

// number keeps what could be a result of arithmetic within what can be written.
func number(w float64) float64 {
	if w > maxDigits {
		return math.Inf(1)
	}
	return w
}

func (p *parser) reference(t hcl.Traversal, inner map[string]float64) float64 {
	if w, ok := inner[t.RootName()]; ok {
		return w
	}
	for ctx := p.ctx; ctx != nil; ctx = ctx.Parent() {
		v, ok := ctx.Variables[t.RootName()]
		if !ok {
			continue
		}
		if len(t) > 1 {
			if a, isAttr := t[1].(hcl.TraverseAttr); isAttr && v.Type().IsObjectType() && v.Type().HasAttribute(a.Name) {
				v = v.GetAttr(a.Name)
			}
		}
		return size(v)
	}
	return perValue // it is not known, and evaluating it is an error
}

// products are functions whose result can be as large as their arguments multiplied.
var products = map[string]bool{"join": true, "replace": true, "regex_replace": true, "setproduct": true, "formatlist": true, "try": false}

func (p *parser) call(x *hclsyntax.FunctionCallExpr, inner map[string]float64) float64 {
	w, product := 1024.0, 1.0
	for _, a := range x.Args {
		n := p.weight(a, inner)
		w += n
		product *= max(1, n)
	}
	switch {
	case x.Name == "range":
		return 1024 * perValue * 2 // its own bound
	case products[x.Name]:
		return w + product
	}
	return 6 * w // JSON writes one byte as six at worst
}

// size is what a value weighs.
func size(v cty.Value) float64 {
	if v.IsNull() || !v.IsKnown() {
		return perValue
	}
	switch {
	case v.Type() == cty.String:
		return perValue + float64(len(v.AsString()))
	case v.Type() == cty.Number:
		exponent := v.AsBigFloat().MantExp(nil)
		digits := math.Abs(float64(exponent)) * 0.302 // log10 of 2
		if digits > maxDigits {
			return math.Inf(1)
		}
		return perValue + digits
	case v.CanIterateElements():
		w := float64(perValue)
		for it := v.ElementIterator(); it.Next(); {
			k, e := it.Element()
			if k.Type() == cty.String {
				w += float64(len(k.AsString()))
			}
			w += size(e)
		}
		return w
	}
	return perValue
}

// width finds a width or precision of four digits or more in a format.
var width = regexp.MustCompile(`%[^a-zA-Z%]*[0-9]{4,}`)

// narrow refuses formats that pad to great widths.
func narrow(f function.Function) function.Function {
	return function.New(&function.Spec{
		Params: f.Params(), VarParam: f.VarParam(),
		Type: func(args []cty.Value) (cty.Type, error) {
			if len(args) > 0 && args[0].IsKnown() && !args[0].IsNull() && args[0].Type() == cty.String && width.MatchString(args[0].AsString()) {
				return cty.NilType, fmt.Errorf("a width of four digits or more is not offered")
			}
			return f.ReturnTypeForValues(args)
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return f.Call(args) },
	})
}
