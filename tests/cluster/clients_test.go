package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
)

// fate is what the clients know of a job for sure.
type fate int

const (
	unclear fate = iota // a call's answer was lost
	exists
	gone
)

// known is a job as its client left it.
type known struct {
	fate  fate
	claim string // what the last claim that was acknowledged has written; "" = none was
	lost  bool   // a claim's answer was lost: it may have been taken, or not
}

// crowd is many clients, each of which takes jobs through their lives.
type crowd struct {
	g      *group
	marker string // in the command line of everything that the jobs run

	mu       sync.Mutex
	jobs     map[string]known // guarded by mu
	counts   map[string]int   // guarded by mu; what was done
	failures []error          // guarded by mu; what must not be
	most     map[string]int   // guarded by mu; processes seen at a time, by job
	sample   error            // guarded by mu; of an execution without an answer, the newest
}

func newCrowd(g *group, marker string) *crowd {
	return &crowd{g: g, marker: marker, jobs: map[string]known{}, counts: map[string]int{}, most: map[string]int{}}
}

func (c *crowd) set(id string, k known) {
	c.mu.Lock()
	c.jobs[id] = k
	c.mu.Unlock()
}

func (c *crowd) count(what string) {
	c.mu.Lock()
	c.counts[what]++
	c.mu.Unlock()
}

func (c *crowd) wrong(format string, args ...any) {
	c.mu.Lock()
	c.failures = append(c.failures, fmt.Errorf(format, args...))
	c.mu.Unlock()
}

// member is one client.
type member struct {
	*crowd
	n       int
	rnd     *rand.Rand
	servers []*api.Client
	at      int
}

// run takes one job after the other through its life until ctx ends. Every third job is left to live.
func (m *member) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		id := fmt.Sprintf("c%d-%d", m.n, i)
		m.live(ctx, id, i%3 == 2)
		pause(ctx, time.Duration(m.rnd.Int64N(int64(600*time.Millisecond))))
	}
}

// live is one job's life.
func (m *member) live(ctx context.Context, id string, stays bool) {
	m.set(id, known{})
	index, ok := m.write(ctx, id, "", 0)
	if !ok {
		return
	}
	m.count("registered")
	m.set(id, known{fate: exists})
	alloc := m.running(ctx, id)
	if alloc == nil {
		return
	}
	m.count("ran")
	claim := fmt.Sprint("claimed by ", m.n)
	m.set(id, known{fate: exists, lost: true})
	if _, ok := m.write(ctx, id, claim, index); !ok {
		return
	}
	m.count("claimed")
	m.set(id, known{fate: exists, claim: claim})
	if m.execute(ctx, alloc, id) {
		m.count("executed")
	}
	if stays {
		return
	}
	m.set(id, known{})
	if _, _, err := m.server().Jobs().Deregister(id, true, (&api.WriteOptions{}).WithContext(bounded(ctx))); err != nil {
		m.turn()
		return
	}
	m.count("purged")
	m.set(id, known{fate: gone})
}

// callBound bounds each call of a client.
const callBound = 12 * time.Second

// bounded is a context of its own: a call that was begun is waited for, so that its outcome is known if it can be.
func bounded(ctx context.Context) context.Context {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), callBound)
	context.AfterFunc(c, cancel)
	return c
}

func (m *member) server() *api.Client { return m.servers[m.at%len(m.servers)] }

func (m *member) turn() { m.at++ }

// write is a compare-and-set. After a lost answer it finds out what became of it, if somebody tells soon; false = it is not known, or it was not taken.
func (m *member) write(ctx context.Context, id, claim string, expect uint64) (index uint64, ok bool) {
	r, _, err := m.server().Jobs().EnforceRegister(m.job(id, claim), expect, (&api.WriteOptions{}).WithContext(bounded(ctx)))
	if err == nil {
		return r.JobModifyIndex, true
	}
	m.turn()
	if strings.Contains(err.Error(), "Enforcing job modify index") {
		m.wrong("job %s, which nobody else writes, was refused: %w", id, err)
	}
	m.count("lost answers")
	for range 3 {
		j, _, err := m.server().Jobs().Info(id, (&api.QueryOptions{}).WithContext(bounded(ctx)))
		if err == nil && j.TaskGroups[1].Meta["claim"] == claim {
			return *j.JobModifyIndex, true
		}
		if err != nil {
			m.turn()
		}
		pause(ctx, 300*time.Millisecond)
	}
	return 0, false
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// running waits until the job runs. A second allocation is wrong.
func (m *member) running(ctx context.Context, id string) *api.Allocation {
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	q := &api.QueryOptions{WaitTime: 2 * time.Second}
	for ctx.Err() == nil {
		list, meta, err := m.server().Jobs().Allocations(id, true, q.WithContext(ctx))
		if err != nil {
			m.turn()
			q.WaitIndex = 0
			pause(ctx, 100*time.Millisecond)
			continue
		}
		q.WaitIndex = meta.LastIndex
		for _, a := range list {
			if a.ClientStatus == api.AllocClientStatusRunning {
				return &api.Allocation{ID: a.ID, NodeID: a.NodeID, Namespace: a.Namespace}
			}
		}
	}
	return nil
}

// execute runs a program in the allocation. A server that has just come back may have no way to the node yet; then another one is asked.
func (m *member) execute(ctx context.Context, a *api.Allocation, id string) bool {
	for range 2 * len(m.servers) {
		err := m.echo(ctx, a, id)
		if err == nil {
			return true
		}
		m.turn()
		m.mu.Lock()
		m.sample = err
		m.mu.Unlock()
		if !strings.Contains(err.Error(), "No path to node") {
			break
		}
		pause(ctx, 200*time.Millisecond)
	}
	m.count("executions without an answer")
	return false
}

// echo runs a program and compares what it says.
func (m *member) echo(ctx context.Context, a *api.Allocation, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callBound)
	defer cancel()
	var out, errs bytes.Buffer
	code, err := m.server().Allocations().Exec(ctx, a, "t", false, []string{"echo", id}, strings.NewReader(""), &out, &errs, nil, nil)
	if err != nil {
		return err
	}
	if code != 0 || out.String() != id+"\n" {
		m.wrong("an execution in %s ended with %d and said %q, %q", id, code, &out, &errs)
	}
	return nil
}

// job is a runner's: a group that runs, and one of count 0 that keeps the claim. Its process has the marker and the job in its command line.
func (m *member) job(id, claim string) *api.Job { return runner(m.marker, id, claim) }

func runner(marker, id, claim string) *api.Job {
	return &api.Job{
		ID: new(id), Type: new("batch"), Datacenters: []string{"dc1"},
		TaskGroups: []*api.TaskGroup{
			{
				Name: new("run"), Count: new(1), EphemeralDisk: &api.EphemeralDisk{SizeMB: new(10)}, RestartPolicy: &api.RestartPolicy{Attempts: new(0), Mode: new("fail")},
				ReschedulePolicy: &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)},
				Tasks: []*api.Task{{
					Name: "t", Driver: "docker",
					Config:      map[string]any{"image": "host", "command": "/bin/sh", "args": []any{"-c", "while :; do sleep 1000; done", marker + "/" + id}},
					KillTimeout: new(time.Duration(0)), Resources: &api.Resources{CPU: new(10), MemoryMB: new(16)},
				}},
			},
			{
				Name: new("keep"), Count: new(0), EphemeralDisk: &api.EphemeralDisk{SizeMB: new(10)}, Meta: map[string]string{"claim": claim},
				Tasks: []*api.Task{{Name: "t", Driver: "docker", Config: map[string]any{"image": "host", "command": "true"}}},
			},
		},
	}
}

// processes counts what the jobs run, by job, as the machine sees it.
func processes(marker string) (map[string]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	jobs, parents := map[string]string{}, map[string]string{} // by process id
	for _, e := range entries {
		line, lerr := os.ReadFile(filepath.Join(e, "cmdline"))
		stat, serr := os.ReadFile(filepath.Join(e, "stat"))
		if lerr != nil || serr != nil {
			continue // it has ended meanwhile
		}
		words := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		// The shell itself: a supervisor may have the whole command among its own arguments.
		if len(words) == 4 && strings.HasSuffix(words[0], "sh") && strings.HasPrefix(words[3], marker+"/") {
			pid := filepath.Base(e)
			jobs[pid] = strings.TrimPrefix(words[3], marker+"/")
			if _, after, ok := strings.Cut(string(stat), ") "); ok {
				parents[pid] = strings.Fields(after)[1]
			}
		}
	}
	out := map[string]int{}
	for pid, job := range jobs {
		if jobs[parents[pid]] != job { // otherwise it is the shell's child, which is not another program yet
			out[job]++
		}
	}
	return out, nil
}

// watch looks at the machine's processes until ctx ends: no job may run twice.
func (c *crowd) watch(ctx context.Context) {
	for ctx.Err() == nil {
		now, err := processes(c.marker)
		if err != nil {
			c.wrong("look at processes: %w", err)
			return
		}
		c.mu.Lock()
		for id, n := range now {
			c.most[id] = max(c.most[id], n)
		}
		c.mu.Unlock()
		pause(ctx, 200*time.Millisecond)
	}
}

// judge compares what was acknowledged with what the servers have and what runs. It is asked until everything has come to rest.
func (c *crowd) judge(ctx context.Context, servers []*api.Client) error {
	var errs []error
	running, err := processes(c.marker)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range sorted(c.jobs) {
		k := c.jobs[id]
		j, _, err := servers[0].Jobs().Info(id, (&api.QueryOptions{}).WithContext(ctx))
		var answer api.UnexpectedResponseError
		missing := errors.As(err, &answer) && answer.StatusCode() == http.StatusNotFound
		switch {
		case err != nil && !missing:
			return err
		case k.fate == exists && missing:
			errs = append(errs, fmt.Errorf("job %s was acknowledged and is lost", id))
		case k.fate == gone && !missing:
			errs = append(errs, fmt.Errorf("job %s was purged and is there", id))
		case !missing && !k.lost && k.fate == exists && j.TaskGroups[1].Meta["claim"] != k.claim:
			errs = append(errs, fmt.Errorf("job %s has the claim %q, acknowledged was %q", id, j.TaskGroups[1].Meta["claim"], k.claim))
		}
		want := 1
		if missing {
			want = 0
		}
		if running[id] != want {
			errs = append(errs, fmt.Errorf("job %s runs %d times, not %d", id, running[id], want))
		}
	}
	for id, n := range c.most {
		if n > 1 {
			errs = append(errs, fmt.Errorf("job %s ran %d times at once", id, n))
		}
	}
	for id := range running {
		if _, ok := c.jobs[id]; !ok {
			errs = append(errs, fmt.Errorf("%s runs and is no job of anybody", id))
		}
	}
	return errors.Join(append(errs, c.failures...)...)
}

func sorted[T any](m map[string]T) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
