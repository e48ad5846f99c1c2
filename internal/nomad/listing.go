package nomad

import (
	"cmp"
	"context"
	"slices"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/environment"
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
	jobs, err := c.fill(ctx, lines)
	if err != nil {
		return nil, err
	}
	templates := map[string]*api.Job{}
	var runners []*api.Job
	present := map[string]bool{}
	for i, s := range lines {
		if jobs[i] == nil { // it is of no interest, or was purged since it was listed
			continue
		}
		if _, ok := runnerEnvironment(s.ID); !ok {
			templates[s.ID] = jobs[i]
			continue
		}
		present[s.ID] = true
		runners = append(runners, jobs[i])
		v.job(jobs[i])
	}
	c.known.replace(runners)
	for _, a := range allocs {
		if present[a.JobID] && v.knows(a.JobID) && a.TaskGroup == mainGroup {
			v.allocation(a)
		}
	}
	if err := c.waiting(ctx, v); err != nil {
		return nil, err
	}
	c.defs.all(templates, v.jobsIndex)
	c.first.Do(func() {
		for name, job := range templates {
			id, _ := templateEnvironment(name)
			c.found = append(c.found, settingsOf(job, id))
			if job.Status != nil && *job.Status == "dead" {
				c.lapsed = append(c.lapsed, job)
			}
		}
		close(c.recovered)
	})
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

// fill is the jobs of runners and, where anybody wants to know them, of environments: those that the lines lack are read one by one, some at a time.
func (c *Client) fill(ctx context.Context, lines []*listed) ([]*api.Job, error) {
	templates := c.defs.feed != nil || !c.listed.Load()
	jobs := make([]*api.Job, len(lines))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookups)
	for i, s := range lines {
		_, isRunner := runnerEnvironment(s.ID)
		_, isTemplate := templateEnvironment(s.ID)
		if !(isRunner && !(s.Stop && s.Status == "dead") || isTemplate && templates && !s.Stop) {
			continue
		}
		if jobs[i] = s.Job; jobs[i] == nil && isRunner {
			jobs[i] = c.known.get(s.ID, s.JobModifyIndex)
		}
		if jobs[i] == nil {
			g.Go(func() (err error) {
				jobs[i], err = c.present(gctx, s.ID)
				return err
			})
		}
	}
	return jobs, g.Wait()
}

// Recovered are the definitions that the first listing has shown, which it waits for.
func (c *Client) Recovered(ctx context.Context) ([]environment.Environment, error) {
	select {
	case <-c.recovered:
		return c.found, nil
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the cluster was not listed in time")
	}
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
