// Package jobspec reads job files in HCL into the job type of nomad/api. It is driven by that type's hcl struct tags: a field that
// the library gains is read without a change here.
//
// Expressions may use var, local, the functions of a list that reads nothing from outside, and the iterators of dynamic blocks. References to anything else, such as ${node.unique.name} or
// ${attr.cpu.arch}, are for the scheduler or the task and stay as they were written.
package jobspec

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
)

// maxErrors bounds how many mistakes of one file are told.
const maxErrors = 20

// Parse reads a job file. variables is the text of a file of variables, or empty. Mistakes are told all together, with their
// places.
func Parse(name string, src []byte, variables string) (*api.Job, error) {
	p := &parser{src: map[string][]byte{name: src}}
	if err := shallow(name, src); err != nil {
		return nil, err
	}
	if err := shallow("variables.hcl", []byte(variables)); err != nil {
		return nil, err
	}
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
			p.job(b.Body, job)
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

// job reads the contents of the job. A task outside of a group stands for a group of its name.
func (p *parser) job(b *hclsyntax.Body, job *api.Job) {
	rest := *b
	rest.Blocks = nil
	for _, k := range b.Blocks {
		if k.Type != "task" {
			rest.Blocks = append(rest.Blocks, k)
		}
	}
	p.body(&rest, reflect.ValueOf(job).Elem())
	for _, k := range b.Blocks {
		if k.Type != "task" {
			continue
		}
		t := &api.Task{}
		p.labelled(k, reflect.ValueOf(t).Elem(), k.Labels)
		job.TaskGroups = append(job.TaskGroups, &api.TaskGroup{Name: new(t.Name), Tasks: []*api.Task{t}})
	}
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
	spent  float64 // weight of what was evaluated
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
