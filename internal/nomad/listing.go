package nomad

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// listed is a line of the list of jobs, with its job where the cluster was asked for it and offers it.
type listed struct {
	api.JobListStub
	Job *api.Job
}

func (c *Client) listWhole(ctx context.Context, prefix string) (lines []*listed, index uint64, err error) {
	q := c.query(ctx)
	q.Prefix = prefix
	q.Params = map[string]string{"rockpool_jobs": "true"} // any other cluster ignores it
	meta, err := c.api.Raw().Query("/v1/jobs", &lines, q)
	if err != nil {
		return nil, 0, classify(err, "list jobs")
	}
	return lines, meta.LastIndex, nil
}

// listing reads everything that is there: two lists, and what jobs they lack.
func (c *Client) listing(ctx context.Context) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	v := newView()
	// The allocations first: one that is made between the lists then comes by an event, after its job.
	var allocs []*allocation
	q := c.query(ctx)
	q.Params = map[string]string{"resources": "true"}
	meta, err := c.api.Raw().Query("/v1/allocations", &allocs, q)
	if err != nil {
		return nil, classify(err, "list allocations")
	}
	v.allocsIndex = meta.LastIndex
	var lines []*listed
	if lines, v.jobsIndex, err = c.listWhole(ctx, ""); err != nil {
		return nil, err
	}
	jobs := make([]*api.Job, len(lines))
	templates := map[string]*api.Job{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookups)
	present := map[string]bool{}
	for i, s := range lines {
		if s.Stop && s.Status == "dead" {
			continue
		}
		if _, ok := templateEnvironment(s.ID); ok && s.Status != "dead" && c.defs.feed != nil {
			templates[s.ID] = s.Job
		}
		if _, ok := runnerEnvironment(s.ID); !ok {
			continue
		}
		present[s.ID] = true
		if jobs[i] = s.Job; jobs[i] == nil {
			jobs[i] = c.known.get(s.ID, s.JobModifyIndex)
		}
		if jobs[i] != nil {
			continue
		}
		g.Go(func() (err error) {
			jobs[i], err = c.present(gctx, s.ID)
			return err
		})
	}
	for id, job := range templates {
		if job == nil {
			job, err := c.present(gctx, id)
			if err != nil {
				return nil, errors.Join(err, g.Wait())
			}
			templates[id] = job
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	c.known.replace(jobs)
	for _, job := range jobs {
		if job != nil {
			v.job(job)
		}
	}
	for _, a := range allocs {
		if present[a.JobID] && v.knows(a.JobID) && a.TaskGroup == mainGroup {
			v.allocation(a)
		}
	}
	if err := c.waiting(ctx, v); err != nil {
		return nil, err
	}
	c.defs.all(templates, v.jobsIndex)
	return v, nil
}

// waiting finds out of runners that ask for devices and have no place whether there is none for them: no list tells it. A pool has one of them in general.
func (c *Client) waiting(ctx context.Context, v *view) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookups)
	found := map[string]*[]*evaluation{}
	for id, t := range v.runners {
		if t.scarce && t.State == pool.Pending && !t.Placed {
			found[id] = new([]*evaluation)
		}
	}
	for id, list := range found {
		g.Go(func() error {
			_, err := c.api.Raw().Query("/v1/job/"+id+"/evaluations", list, c.query(gctx))
			if err = classify(err, "list the evaluations of "+id); fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, list := range found {
		slices.SortFunc(*list, func(a, b *evaluation) int { return cmp.Compare(a.ModifyIndex, b.ModifyIndex) })
		for _, e := range *list {
			v.refused(e)
		}
	}
	return nil
}

// present is a job, or nil when it was purged since it was listed.
func (c *Client) present(ctx context.Context, id string) (*api.Job, error) {
	job, err := c.job(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	return job, err
}

// FindRunner asks for one runner; false = it is not there, or not claimed, or has ended.
func (c *Client) FindRunner(ctx context.Context, id string) (runner.Seen, bool, error) {
	if _, ok := runnerEnvironment(id); !ok {
		return runner.Seen{}, false, nil
	}
	job, err := c.present(ctx, id)
	if err != nil || job == nil {
		return runner.Seen{}, false, err
	}
	if used, _ := claimOf(job); !used || (job.Stop != nil && *job.Stop) {
		return runner.Seen{}, false, nil
	}
	var allocs []*allocation
	if _, err := c.api.Raw().Query("/v1/job/"+id+"/allocations", &allocs, c.query(ctx)); err != nil {
		if err = classify(err, "list the allocations of "+id); fault.Is(err, fault.NotFound) {
			return runner.Seen{}, false, nil
		}
		return runner.Seen{}, false, err
	}
	v := newView()
	v.job(job)
	for _, a := range allocs {
		if a.TaskGroup == mainGroup {
			a.JobID = id
			if a.AllocatedResources == nil {
				// Lists of a job's allocations come without their ports.
				if err := c.ports(ctx, a); err != nil {
					return runner.Seen{}, false, err
				}
			}
			v.allocation(a)
		}
	}
	seen := v.seen(id)
	return seen, seen.State == pool.Ready && seen.Place != (execution.Place{}), nil
}

func (c *Client) ports(ctx context.Context, a *allocation) error {
	var whole allocation
	if _, err := c.api.Raw().Query("/v1/allocation/"+a.ID, &whole, c.query(ctx)); err != nil {
		return classify(err, "read the allocation "+a.ID)
	}
	a.AllocatedResources = whole.AllocatedResources
	return nil
}
