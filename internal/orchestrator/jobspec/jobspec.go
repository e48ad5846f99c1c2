// Package jobspec reads job files in HCL into the job type of nomad/api. It is driven by that type's hcl struct tags: a field that
// the library gains is read without a change here.
//
// Expressions may use var, local and the functions of [functions]. References to anything else, such as ${node.unique.name} or
// ${attr.cpu.arch}, are for the scheduler or the task and stay as they were written.
package jobspec

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
)

// maxErrors bounds how many mistakes of one file are told.
const maxErrors = 20

// Parse reads a job file. variables is the text of a file of variables, or empty. Mistakes are told all together, with their
// places.
func Parse(name string, src []byte, variables string) (*api.Job, error) {
	p := &parser{src: map[string][]byte{name: src}}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	p.add(diags)
	if diags.HasErrors() {
		return nil, p.err()
	}
	body := file.Body.(*hclsyntax.Body)
	p.evaluate(body, variables)
	var job *api.Job
	for _, b := range body.Blocks {
		switch {
		case b.Type == "variable" || b.Type == "variables" || b.Type == "locals":
		case b.Type != "job":
			p.fail(b.TypeRange, "a job file has no block %q", b.Type)
		case job != nil:
			p.fail(b.TypeRange, "a job file has one job")
		case len(b.Labels) != 1:
			p.fail(b.TypeRange, "a job has a name: job \"name\" { … }")
		default:
			job = &api.Job{}
			p.body(b.Body, reflect.ValueOf(job).Elem())
			if job.ID == nil {
				job.ID = new(b.Labels[0])
			}
			if job.Name == nil {
				job.Name = new(b.Labels[0])
			}
		}
	}
	for _, a := range body.Attributes {
		p.fail(a.NameRange, "a job file has no attribute %q outside of its job", a.Name)
	}
	if job == nil && len(p.errors) == 0 {
		return nil, errors.New("the file has no job")
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	tidy(job)
	return job, nil
}

// tidy puts ports with a fixed number where the API has them.
func tidy(j *api.Job) {
	sort := func(list []*api.NetworkResource) {
		for _, n := range list {
			var dynamic []api.Port
			for _, p := range n.DynamicPorts {
				if p.Value > 0 {
					n.ReservedPorts = append(n.ReservedPorts, p)
				} else {
					dynamic = append(dynamic, p)
				}
			}
			n.DynamicPorts = dynamic
		}
	}
	for _, g := range j.TaskGroups {
		sort(g.Networks)
		for _, t := range g.Tasks {
			if t.Resources != nil {
				sort(t.Resources.Networks)
			}
		}
	}
}

type parser struct {
	src    map[string][]byte // by file name
	ctx    *hcl.EvalContext
	errors []error
}

func (p *parser) add(diags hcl.Diagnostics) {
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			p.errors = append(p.errors, d)
		}
	}
}

func (p *parser) fail(r hcl.Range, format string, args ...any) {
	p.errors = append(p.errors, fmt.Errorf("%s:%d,%d: %s", r.Filename, r.Start.Line, r.Start.Column, fmt.Sprintf(format, args...)))
}

func (p *parser) err() error {
	if len(p.errors) > maxErrors {
		p.errors = append(p.errors[:maxErrors:maxErrors], fmt.Errorf("and %d more", len(p.errors)-maxErrors))
	}
	return errors.Join(p.errors...)
}

// evaluate makes the context of expressions: variables, then locals in their order.
func (p *parser) evaluate(body *hclsyntax.Body, variables string) {
	vars, locals := map[string]cty.Value{}, map[string]cty.Value{}
	p.ctx = &hcl.EvalContext{Functions: functions, Variables: map[string]cty.Value{}}
	given := p.given(variables)
	for _, b := range body.Blocks {
		if b.Type != "variable" {
			continue
		}
		if len(b.Labels) != 1 {
			p.fail(b.TypeRange, "a variable has a name")
			continue
		}
		name := b.Labels[0]
		if v, ok := given[name]; ok {
			vars[name] = v
			delete(given, name)
		} else if d := b.Body.Attributes["default"]; d != nil {
			vars[name] = p.value(d.Expr)
		} else {
			p.fail(b.TypeRange, "variable %q has neither a value nor a default", name)
		}
	}
	for name := range given {
		p.errors = append(p.errors, fmt.Errorf("a value is given for variable %q, which the file does not declare", name))
	}
	p.ctx.Variables["var"] = cty.ObjectVal(vars)
	p.ctx.Variables["local"] = cty.EmptyObjectVal
	for _, b := range body.Blocks {
		if b.Type != "locals" {
			continue
		}
		for _, a := range ordered(b.Body.Attributes) {
			locals[a.Name] = p.value(a.Expr)
			p.ctx.Variables["local"] = cty.ObjectVal(locals)
		}
	}
}

// given reads the values of a file of variables.
func (p *parser) given(text string) map[string]cty.Value {
	out := map[string]cty.Value{}
	if text == "" {
		return out
	}
	const name = "variables.hcl"
	p.src[name] = []byte(text)
	file, diags := hclsyntax.ParseConfig([]byte(text), name, hcl.InitialPos)
	p.add(diags)
	if diags.HasErrors() {
		return out
	}
	for _, a := range ordered(file.Body.(*hclsyntax.Body).Attributes) {
		out[a.Name] = p.value(a.Expr)
	}
	return out
}
