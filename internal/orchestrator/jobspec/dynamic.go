package jobspec

import (
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/hashicorp/hcl/v2"
)

// perBlock is what one more block of a dynamic one weighs.
const perBlock = 4 << 10

// expanded is a block, with the context that a dynamic block gave it.
type expanded struct {
	*hclsyntax.Block
	ctx *hcl.EvalContext // nil = that around it
}

// expand replaces dynamic blocks by what they stand for.
func (p *parser) expand(blocks hclsyntax.Blocks) []expanded {
	out := make([]expanded, 0, len(blocks))
	for _, b := range blocks {
		if b.Type == "dynamic" {
			out = append(out, p.dynamic(b)...)
		} else {
			out = append(out, expanded{Block: b})
		}
	}
	return out
}

// dynamic makes a block for each element of for_each.
func (p *parser) dynamic(b *hclsyntax.Block) (out []expanded) {
	if len(b.Labels) != 1 {
		p.fail(b.TypeRange, "a dynamic block names the blocks that it makes: dynamic \"port\" { … }")
		return nil
	}
	iterator := b.Labels[0]
	var content *hclsyntax.Block
	for _, a := range ordered(b.Body.Attributes) {
		switch a.Name {
		case "for_each", "labels":
		case "iterator":
			if iterator = hcl.ExprAsKeyword(a.Expr); iterator == "" {
				p.fail(a.SrcRange, "iterator is a name")
				return nil
			}
		default:
			p.fail(a.NameRange, "a dynamic block has no attribute %q, but for_each, iterator and labels", a.Name)
		}
	}
	for _, k := range b.Body.Blocks {
		if k.Type != "content" || content != nil {
			p.fail(k.TypeRange, "a dynamic block has one block, content")
			return nil
		}
		content = k
	}
	each := b.Body.Attributes["for_each"]
	if each == nil || content == nil {
		p.fail(b.TypeRange, "a dynamic block has for_each and content")
		return nil
	}
	list := p.value(each.Expr)
	if list.IsNull() || !list.IsKnown() || !list.CanIterateElements() {
		p.fail(each.SrcRange, "for_each must be a list, a set or a map")
		return nil
	}
	for it := list.ElementIterator(); it.Next(); {
		k, v := it.Element()
		if list.Type().IsSetType() {
			k = v
		}
		if p.spent += perBlock; p.spent > maxTotal {
			p.fail(b.TypeRange, "this could become too large: too many blocks")
			return nil
		}
		ctx := p.ctx.NewChild()
		ctx.Variables = map[string]cty.Value{iterator: cty.ObjectVal(map[string]cty.Value{"key": k, "value": v})}
		made := &hclsyntax.Block{Type: b.Labels[0], TypeRange: b.TypeRange, Body: content.Body}
		if l := b.Body.Attributes["labels"]; l != nil {
			outer := p.ctx
			p.ctx = ctx
			labels := p.value(l.Expr)
			p.ctx = outer
			if labels.IsNull() || !labels.IsKnown() || !labels.CanIterateElements() {
				p.fail(l.SrcRange, "labels must be a list of texts")
				return nil
			}
			for lt := labels.ElementIterator(); lt.Next(); {
				_, e := lt.Element()
				s, ok := text(e)
				if !ok {
					p.fail(l.SrcRange, "labels must be a list of texts")
					return nil
				}
				made.Labels = append(made.Labels, s)
			}
		}
		out = append(out, expanded{made, ctx})
	}
	return out
}
