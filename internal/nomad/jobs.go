package nomad

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner"
	"rockpool/internal/timeline"
)

// placementTime is how long the registration of a template waits for its evaluation.
const placementTime = 10 * time.Second

// lookups is how many jobs are read at once.
const lookups = 16

func (c *Client) register(ctx context.Context, job *api.Job, enforce bool, index uint64) (*api.JobRegisterResponse, error) {
	resp, _, err := c.api.Jobs().RegisterOpts(job, &api.RegisterOptions{EnforceIndex: enforce, ModifyIndex: index}, c.write(ctx))
	return resp, classify(err, "register job "+*job.ID)
}

func (c *Client) job(ctx context.Context, id string) (*api.Job, error) {
	job, _, err := c.api.Jobs().Info(id, c.query(ctx))
	return job, classify(err, "read job "+id)
}

// CreateRunner registers a runner's job. That it is there already means that an earlier try worked.
func (c *Client) CreateRunner(ctx context.Context, e environment.Environment, id string, pull bool) (uint64, error) {
	job, err := c.derive(e, id, pull)
	if err != nil {
		return 0, err
	}
	configOf(job).Meta = describe(e)
	// The start of a runner is a trace of its own, whoever had it started.
	span := c.opts.Timeline.Start(id)
	span.Number(timeline.Environment, int64(e.ID))
	call := span.Child(timeline.RunnerRegister)
	resp, err := c.register(timeline.With(ctx, call), job, true, 0)
	call.Fail(err)
	call.End()
	if fault.Is(err, fault.Conflict) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return resp.JobModifyIndex, nil
}

// ClaimRunner marks a runner as used by compare-and-set. What the feed has shown of its job saves a question; if that is out of date, the comparison fails
// and the job is read.
func (c *Client) ClaimRunner(ctx context.Context, id string, m runner.Mark) (err error) {
	ctx, span := timeline.Start(ctx, timeline.ClaimMark)
	defer func() {
		span.Fail(err)
		span.End()
		if err == nil {
			c.opts.Timeline.Runner(id).After(timeline.RunnerIdle)
		}
	}()
	if job := c.known.take(id); job != nil {
		if err := c.mark(ctx, job, m); !errors.Is(err, runner.ErrClaimLost) {
			return err
		}
	}
	job, err := c.job(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return fmt.Errorf("%w: %w", runner.ErrClaimLost, err)
	}
	if err != nil {
		return err
	}
	return c.mark(ctx, job, m)
}

// mark writes a claim into a job as it was at its index.
func (c *Client) mark(ctx context.Context, job *api.Job, m runner.Mark) error {
	group := configOf(job)
	if group == nil || job.JobModifyIndex == nil {
		return fault.New(fault.Internal, "the job %s is not one of a runner", *job.ID)
	}
	if used, _ := claimOf(job); used || (job.Stop != nil && *job.Stop) {
		return runner.ErrClaimLost
	}
	meta := map[string]string{}
	markAs(meta, m)
	if c.gateway != "" {
		meta[metaGateway] = c.gateway
	}
	err := errNotMarked
	if c.marks.Load() {
		err = c.markAlone(ctx, job, meta)
	}
	if errors.Is(err, errNotMarked) {
		all := maps.Clone(group.Meta) // it may be shared
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, meta)
		group.Meta = all
		_, err = c.register(ctx, job, true, *job.JobModifyIndex)
	}
	if fault.Is(err, fault.Conflict) {
		return fmt.Errorf("%w: %w", runner.ErrClaimLost, err)
	}
	return err
}

// errNotMarked says that a claim must be written as a registration of the whole job.
var errNotMarked = errors.New("the job was not marked")

// markAlone sends a claim without the rest of the job, and compares as a registration does. errNotMarked also where a server knows no marks, as an older one does.
func (c *Client) markAlone(ctx context.Context, job *api.Job, meta map[string]string) error {
	body, err := json.Marshal(struct {
		Group          string
		Meta           map[string]string
		JobModifyIndex uint64
	}{configGroup, meta, *job.JobModifyIndex})
	if err != nil {
		return fmt.Errorf("encode a mark: %w", err)
	}
	var done answer
	err = c.rawJSON(ctx, http.MethodPut, "/v1/rockpool/job/"+url.PathEscape(*job.ID)+"/mark", url.Values{}, bytes.NewReader(body), &done, "mark job "+*job.ID)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unprocessable) {
		return errNotMarked
	}
	return err
}

func (c *Client) purge(ctx context.Context, id string) error {
	_, _, err := c.api.Jobs().Deregister(id, true, c.write(ctx))
	if err = classify(err, "purge job "+id); fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// DestroyRunner purges a runner's job.
func (c *Client) DestroyRunner(ctx context.Context, id string) error { return c.purge(ctx, id) }

func (c *Client) list(ctx context.Context, prefix string) ([]*api.JobListStub, uint64, error) {
	q := c.query(ctx)
	q.Prefix = prefix
	stubs, meta, err := c.api.Jobs().List(q)
	if err != nil {
		return nil, 0, classify(err, "list jobs")
	}
	return stubs, meta.LastIndex, nil
}

// RunnersOf lists the runner jobs of an environment.
func (c *Client) RunnersOf(ctx context.Context, id environment.ID) ([]string, error) {
	stubs, _, err := c.list(ctx, strconv.Itoa(int(id))+"-")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, s := range stubs {
		if env, ok := runnerEnvironment(s.ID); ok && env == id {
			ids = append(ids, s.ID)
		}
	}
	return ids, nil
}

// Orphans reads each of the jobs, and whether there is a definition. What is not exactly as a gateway makes it is somebody else's, and stays.
func (c *Client) Orphans(ctx context.Context, id environment.ID, runners []string) ([]string, error) {
	defined, err := c.present(ctx, templateID(id))
	if err != nil || defined != nil {
		return nil, err
	}
	found := make([]string, len(runners))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookups)
	for i, name := range runners {
		g.Go(func() error {
			job, err := c.present(gctx, name)
			if job != nil && isOurs(job, id) {
				found[i] = name
			}
			return err
		})
	}
	err = g.Wait()
	return slices.DeleteFunc(found, func(name string) bool { return name == "" }), err
}

// RegisterTemplate stores an environment's definition and waits until it is known whether it can be placed. Devices and classes that no node has are Invalid.
func (c *Client) RegisterTemplate(ctx context.Context, e environment.Environment) error {
	job, err := c.derive(e, templateID(e.ID), true)
	if err != nil {
		return err
	}
	config := configOf(job)
	if config.Meta == nil {
		config.Meta = map[string]string{}
	}
	config.Meta[metaPoolSize] = strconv.FormatUint(uint64(e.PoolSize), 10)
	if e.PoolSizeMax > 0 {
		config.Meta[metaPoolMin] = strconv.FormatUint(uint64(e.PoolSizeMin), 10)
		config.Meta[metaPoolMax] = strconv.FormatUint(uint64(e.PoolSizeMax), 10)
	}
	maps.Copy(config.Meta, describe(e))
	outlast(job)
	before, err := c.job(ctx, *job.ID)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if asksAnew(before, e) {
		if err := c.possible(ctx, e); err != nil {
			return err
		}
	}
	// What the feed shows of this registration is our own doing, and what it shows meanwhile waits until it is known which that is.
	index := uint64(0)
	done := c.defs.change(e.ID)
	defer func() { done(index) }()
	resp, err := c.register(ctx, job, false, 0)
	if err == nil {
		index = resp.JobModifyIndex
	}
	if err == nil && resp.EvalID != "" {
		err = c.placed(ctx, resp.EvalID)
	}
	if err == nil {
		return nil
	}
	index = max(index, c.putBack(ctx, before, *job.ID))
	return err
}

// Times between the tries to start a template's container again.
const (
	againTime = 30 * time.Second // the first, doubled each time,
	againMost = time.Hour        // up to this
)

// outlast has the cluster start a template's container again whenever it ends: a batch job without one is dead, and what is dead is removed in time.
func outlast(job *api.Job) {
	group, _ := mainOf(job)
	group.ReschedulePolicy = &api.ReschedulePolicy{
		Attempts: new(0), Interval: new(time.Duration(0)), Unlimited: new(true), Delay: new(againTime), DelayFunction: new("exponential"), MaxDelay: new(againMost),
	}
}

// Revive registers the template jobs anew that were dead when the cluster was listed first, such as after all its machines were off. Definitions hold without that, but
// the cluster would remove them in time. Who has changed one meanwhile has done it already.
func (c *Client) Revive(ctx context.Context) {
	select {
	case <-c.recovered:
	case <-ctx.Done():
		return
	}
	for _, job := range c.lapsed {
		log := c.log.WithField("job_id", *job.ID)
		if err := c.revive(ctx, job); err != nil && !fault.Is(err, fault.Conflict) {
			log.WithField("error", err.Error()).Warn("an environment's template job is dead and could not be registered anew; the environment holds until the cluster removes the job")
			continue
		}
		log.Info("an environment's template job was dead and is registered anew")
	}
}

func (c *Client) revive(ctx context.Context, job *api.Job) error {
	group, _ := mainOf(job)
	config := configOf(job)
	id, ok := templateEnvironment(*job.ID)
	if !ok || group == nil || config == nil || job.JobModifyIndex == nil {
		return fault.New(fault.Internal, "it is not one of a gateway")
	}
	if config.Meta == nil {
		config.Meta = map[string]string{}
	}
	config.Meta[metaRevived] = time.Now().UTC().Format(time.RFC3339) // of a job that is as it was the cluster starts nothing
	outlast(job)
	ctx, cancel := context.WithTimeout(ctx, placementTime)
	defer cancel()
	index := uint64(0)
	done := c.defs.change(id)
	defer func() { done(index) }()
	resp, err := c.register(ctx, job, true, *job.JobModifyIndex)
	if err == nil {
		index = resp.JobModifyIndex
	}
	return err
}

// ResolveImage asks the cluster what a reference means now. On a cluster that has no such route it cannot be learned, nor where the credentials are those
// of the template's job alone.
func (c *Client) ResolveImage(ctx context.Context, image string) (environment.Pin, error) {
	if !c.resolves.Load() {
		return environment.Pin{}, nil
	}
	body, err := json.Marshal(struct{ Image string }{image})
	if err != nil {
		return environment.Pin{}, fmt.Errorf("encode the image: %w", err)
	}
	var found struct{ Digest, Reference string }
	err = c.rawJSON(ctx, http.MethodPut, "/v1/rockpool/image/resolve", url.Values{}, bytes.NewReader(body), &found, "resolve the image")
	if fault.Is(err, fault.Forbidden) {
		c.log.WithFields(logging.Fields{"image": image, "error": err.Error()}).Warn("it could not be learned what an image's reference means")
		return environment.Pin{}, nil
	}
	if err != nil {
		return environment.Pin{}, fault.Wrap(fault.KindOf(err), err, "the environment's image cannot be used: %s", wordsOf(err))
	}
	return environment.Pin{Digest: found.Digest, Reference: found.Reference}, nil
}

// putBack restores what a failed registration replaced, so that a restart of the gateway finds the definition that is in force. It returns the
// index of what it registered, 0 = nothing.
func (c *Client) putBack(ctx context.Context, before *api.Job, id string) (index uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handshakeTime)
	defer cancel()
	err := error(nil)
	if before == nil {
		err = c.purge(ctx, id)
	} else {
		var resp *api.JobRegisterResponse
		if resp, err = c.register(ctx, before, false, 0); err == nil {
			index = resp.JobModifyIndex
		}
	}
	if err != nil {
		c.log.WithField("error", err.Error()).Warn("a template job that could not be placed was left in the cluster")
	}
	return index
}

// placed waits for an evaluation by its event and, when none comes, asks once.
func (c *Client) placed(ctx context.Context, id string) error {
	waitCtx, cancel := context.WithTimeout(ctx, placementTime)
	defer cancel()
	ev, ok := c.evals.wait(waitCtx, id)
	if !ok {
		found, _, err := c.api.Evaluations().Info(id, c.query(ctx))
		if err != nil {
			return classify(err, "read evaluation "+id)
		}
		ev = evaluation{ID: id, Status: found.Status, StatusDescription: found.StatusDescription}
		ev.FailedTGAllocs = map[string]*refusal{}
		for group, m := range found.FailedTGAllocs {
			ev.FailedTGAllocs[group] = refusalOf(m)
		}
		if found.Status == "pending" || found.Status == "blocked" {
			return fault.New(fault.Deadline, "the environment could not be placed within %v: the evaluation is %s", placementTime, found.Status)
		}
	}
	if groups := slices.Sorted(maps.Keys(ev.FailedTGAllocs)); len(groups) > 0 {
		return fault.New(fault.Internal, "the environment cannot be placed: %s", ev.FailedTGAllocs[groups[0]])
	}
	if ev.Status != "complete" {
		return fault.New(fault.Internal, "the environment cannot be placed: the evaluation is %s", ev.Status)
	}
	return nil
}

// DeleteTemplate purges an environment's template job.
func (c *Client) DeleteTemplate(ctx context.Context, id environment.ID) error {
	return c.purge(ctx, templateID(id))
}

// Templates reads the definitions of all template jobs that nobody has stopped. What became of their container does not matter.
func (c *Client) Templates(ctx context.Context) ([]environment.Environment, error) {
	lines, _, err := c.listWhole(ctx, templatePrefix)
	if err != nil {
		return nil, err
	}
	found := make([]*environment.Environment, len(lines))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookups)
	for i, s := range lines {
		id, ok := templateEnvironment(s.ID)
		if !ok || s.Stop {
			continue
		}
		if s.Job != nil {
			found[i] = new(settingsOf(s.Job, id))
			continue
		}
		g.Go(func() error {
			job, err := c.present(gctx, s.ID)
			if job != nil {
				found[i] = new(settingsOf(job, id))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var list []environment.Environment
	for _, e := range found {
		if e != nil {
			list = append(list, *e)
		}
	}
	return list, nil
}
