package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"rockpool/internal/orchestrator/sim/linear"
)

// workload is what clients do with jobs. Few jobs at a time make them meet; each job is given up after some operations, because the checker's work grows with
// the length of one job's history.
type workload struct {
	history *linear.History
	servers []string // host:port
	slots   int      // jobs in use at a time
	perJob  int      // operations on one job
	stale   bool
	devices bool // jobs ask for some, and those that are given up are purged, so that others get theirs

	mu   sync.Mutex
	jobs []*jobInUse     // guarded by mu; one for each slot
	all  map[string]bool // guarded by mu; ids ever used
	seen map[string]int  // guarded by mu; outcomes, for the report
}

type jobInUse struct {
	id    string
	index uint64 // what the clients believe; 0 = there is none
	ops   int
}

func newWorkload(servers []string, slots, perJob int, stale bool) *workload {
	w := &workload{
		history: linear.NewHistory(), servers: servers, slots: slots, perJob: perJob, stale: stale,
		jobs: make([]*jobInUse, slots), all: map[string]bool{}, seen: map[string]int{},
	}
	for i := range w.jobs {
		w.next(i, 0)
	}
	return w
}

// next is called with mu held, or before there are clients.
func (w *workload) next(slot, generation int) {
	id := fmt.Sprintf("job-%d-%d", slot, generation)
	w.jobs[slot] = &jobInUse{id: id}
	w.all[id] = true
}

// client is one caller.
type client struct {
	*workload
	n    int
	rnd  *rand.Rand
	http *http.Client
	seq  int
}

const callBound = 15 * time.Second

// run calls until ctx ends. A call under way is brought to its end.
func (c *client) run(ctx context.Context) {
	for {
		t := time.NewTimer(time.Duration(c.rnd.Int64N(int64(120 * time.Millisecond))))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		c.once(context.WithoutCancel(ctx))
	}
}

// once makes one call.
func (c *client) once(ctx context.Context) {
	c.mu.Lock()
	slot := c.rnd.IntN(c.slots)
	j := c.jobs[slot]
	left := ""
	if j.ops++; j.ops > c.perJob {
		left = j.id
		var generation int
		_, _ = fmt.Sscanf(j.id, fmt.Sprintf("job-%d-%%d", slot), &generation)
		c.next(slot, generation+1)
		j = c.jobs[slot]
	}
	index := j.index
	c.mu.Unlock()
	if c.devices && left != "" {
		c.purge(ctx, left)
	}
	switch p := c.rnd.IntN(100); {
	case p < 25, c.stale && p < 60:
		c.learn(j, c.read(ctx, j.id))
	case p < 33 && index != 0:
		if r := c.purge(ctx, j.id); r.Outcome == linear.Done {
			c.learn(j, linear.Result{Outcome: linear.Done})
		}
	default:
		r := c.put(ctx, j.id, index)
		if r.Outcome == linear.Conflict {
			r = c.read(ctx, j.id)
		}
		c.learn(j, r)
	}
}

func (c *client) learn(j *jobInUse, r linear.Result) {
	if r.Outcome != linear.Done {
		return
	}
	c.mu.Lock()
	j.index = r.Index
	c.mu.Unlock()
}

// put is a claim where the job exists: a compare-and-set of its meta.
func (c *client) put(ctx context.Context, id string, expect uint64) linear.Result {
	c.seq++
	value := fmt.Sprintf("%d.%d", c.n, c.seq)
	replace := ""
	if c.rnd.IntN(6) == 0 {
		replace = value // the allocations have to be replaced
	}
	body := map[string]any{"Job": jobSpec(id, value, replace, c.devices), "EnforceIndex": true, "JobModifyIndex": expect}
	return c.do(linear.Op{Kind: linear.CAS, Job: id, Expect: expect, Value: value}, func() (linear.Result, error) {
		var out struct{ JobModifyIndex uint64 }
		err := c.call(ctx, http.MethodPut, "/v1/jobs", body, &out)
		if err != nil && strings.Contains(err.Error(), "Enforcing job modify index") {
			return linear.Result{Outcome: linear.Conflict}, nil
		}
		return linear.Result{Outcome: linear.Done, Index: out.JobModifyIndex}, err
	})
}

func (c *client) read(ctx context.Context, id string) linear.Result {
	return c.do(linear.Op{Kind: linear.Read, Job: id}, func() (linear.Result, error) {
		var out struct {
			JobModifyIndex uint64
			TaskGroups     []struct{ Meta map[string]string }
		}
		query := ""
		if c.stale {
			query = "?stale"
		}
		err := c.call(ctx, http.MethodGet, "/v1/job/"+id+query, nil, &out)
		if s, ok := errors.AsType[*statusError](err); ok && s.status == http.StatusNotFound {
			return linear.Result{Outcome: linear.Done}, nil
		}
		if err != nil {
			return linear.Result{}, err
		}
		return linear.Result{Outcome: linear.Done, Index: out.JobModifyIndex, Value: out.TaskGroups[1].Meta["value"]}, nil
	})
}

func (c *client) purge(ctx context.Context, id string) linear.Result {
	return c.do(linear.Op{Kind: linear.Purge, Job: id}, func() (linear.Result, error) {
		return linear.Result{Outcome: linear.Done}, c.call(ctx, http.MethodDelete, "/v1/job/"+id+"?purge=true", nil, nil)
	})
}

// do records an operation. One whose outcome is not known counts as such; only what surely was never sent, or was refused before it was looked at, has no effect.
func (c *client) do(op linear.Op, f func() (linear.Result, error)) linear.Result {
	return c.history.Do(c.n, op, func() linear.Result {
		r, err := f()
		switch {
		case err == nil:
		case never(err):
			r = linear.Result{Outcome: linear.Never}
		default:
			r = linear.Result{Outcome: linear.Unknown}
		}
		c.mu.Lock()
		c.seen[string(op.Kind)+" "+string(r.Outcome)]++
		c.mu.Unlock()
		return r
	})
}

// never reports whether a call cannot have had an effect.
func never(err error) bool {
	if s, ok := errors.AsType[*statusError](err); ok {
		return s.status == http.StatusTooManyRequests
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// statusError is an answer that is not 200.
type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

// call asks any one server, once.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+pick(c.rnd, c.servers)+path, body)
	if err != nil {
		return err
	}
	r.GetBody = nil // nothing is sent twice behind our back
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &statusError{resp.StatusCode, string(data)}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

// jobSpec is a runner's job: a group that runs and one of count 0 that keeps the value. A change of replace has the running group replaced.
func jobSpec(id, value, replace string, devices bool) map[string]any {
	kind := "batch"
	resources := map[string]any{"CPU": 20, "MemoryMB": 20}
	if devices {
		resources["Devices"] = request(id)
	}
	if strings.HasSuffix(id, "1") || strings.HasSuffix(id, "5") {
		kind = "service"
	}
	return map[string]any{
		"ID": id, "Type": kind, "Datacenters": []string{"dc1"},
		"TaskGroups": []any{
			map[string]any{
				"Name": "run", "Count": 1 + len(id)%2,
				"Tasks": []any{map[string]any{
					"Name": "t", "Driver": "mock", "Config": map[string]any{}, "Env": map[string]string{"REPLACE": replace},
					"Resources": resources,
				}},
			},
			map[string]any{
				"Name": "keep", "Count": 0, "Meta": map[string]string{"value": value},
				"Tasks": []any{map[string]any{"Name": "t", "Driver": "mock", "Config": map[string]any{}}},
			},
		},
	}
}

// every reads each job that was ever used, once: what was acknowledged last must be there.
func (c *client) every(ctx context.Context) error {
	c.mu.Lock()
	ids := make([]string, 0, len(c.all))
	for id := range c.all {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	for _, id := range ids {
		if r := c.read(ctx, id); r.Outcome != linear.Done {
			return fmt.Errorf("job %s could not be read at the end", id)
		}
	}
	return nil
}
