package orchestrator_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/api/contexts"

	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/model"
	nodeagent "rockpool/internal/orchestrator/node"
)

// section is a golden file.
type section struct {
	name     string
	commands []goldenCommand
}

func sections(acl bool) []section {
	access := section{"access", accessCommands}
	if !acl {
		access = section{"access_off", accessOffCommands}
	}
	return []section{
		{"jobs", jobCommands}, {"allocations", allocCommands}, {"deployments", deploymentCommands}, {"nodes", nodeCommands}, {"queries", queryCommands},
		{"refusals", refusalCommands}, {"policies", policyCommands}, access, {"servers", serverCommands}, {"ends", endCommands},
	}
}

func in(capabilities ...string) string {
	return fmt.Sprintf("namespace \"default\" {\n  capabilities = [\"%s\"]\n}\n", strings.Join(capabilities, `", "`))
}

const (
	readsNodes = "node {\n  policy = \"read\"\n}\n"
	writeNodes = "node {\n  policy = \"write\"\n}\n"
	readsAgent = "agent {\n  policy = \"read\"\n}\n"
	writeAgent = "agent {\n  policy = \"write\"\n}\n"
	readsPools = "node_pool \"*\" {\n  policy = \"read\"\n}\n"
	writePools = "node_pool \"*\" {\n  policy = \"write\"\n}\n"
	operates   = "operator {\n  policy = \"write\"\n}\n"
	inspects   = "operator {\n  policy = \"read\"\n}\n"
	readsQuota = "quota {\n  policy = \"read\"\n}\n"
	writeQuota = "quota {\n  policy = \"write\"\n}\n"
	unknownID  = "4a8a8d94-4c3c-4a1c-9c1a-5a6b7c8d9e0f"
)

// furnish gives the cluster a node whose size is the same on every machine, and a log that can be followed.
func (g *golden) furnish() {
	g.mock = mock.New()
	g.node = withNode(g.t, g.c, func(cfg *nodeagent.Config) {
		cfg.Name, cfg.NodeClass, cfg.Drivers = "node-1", "small", []driver.Driver{g.mock}
		cfg.Resources = func(r *model.NodeResources) { r.CPU, r.Cores, r.MemoryMB, r.DiskMB = 8000, 8, 16_000, 100_000 }
	})
	_, feed, err := logging.NewFeed(io.Discard, "info", "TextFormatter")
	if err != nil {
		g.t.Fatal(err)
	}
	g.c.server.SetProcess(httpapi.Process{Metrics: metrics.New(nil), Log: feed, Profiles: true, Reload: func() error { return nil },
		Config: func() map[string]any { return map[string]any{"name": "one"} }})
}

func ended[A, B any](_ A, _ B, err error) error { return err }
func done[A any](_ A, err error) error          { return err }

// web is a service job as an operator would write it.
func web(image string) *api.Job {
	return &api.Job{
		ID: new("web"), Type: new("service"), Datacenters: []string{"dc1"}, Meta: map[string]string{"team": "a"},
		TaskGroups: []*api.TaskGroup{{
			Name: new("front"), Count: new(1), Scaling: &api.ScalingPolicy{Min: new(int64(1)), Max: new(int64(3)), Type: "horizontal", Enabled: new(true)},
			Services: []*api.Service{{Name: "web", Provider: "nomad", Tags: []string{"blue"}}},
			Update: &api.UpdateStrategy{MaxParallel: new(1), Canary: new(1), HealthCheck: new("task_states"), MinHealthyTime: new(time.Millisecond), HealthyDeadline: new(10 * time.Second),
				ProgressDeadline: new(time.Minute)},
			Tasks: []*api.Task{{Name: "server", Driver: "mock", Config: map[string]any{"stdout_string": "hello " + image + "\n", "stderr_string": "warm\n"}, Env: map[string]string{"A": "b"},
				KillTimeout: new(time.Second), Resources: &api.Resources{CPU: new(100), MemoryMB: new(64)}}},
		}},
	}
}

// one is a batch job that runs until it is stopped.
func one(id string) *api.Job {
	return &api.Job{ID: &id, Type: new("batch"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
		Tasks: []*api.Task{{Name: "t", Driver: "mock", Config: map[string]any{}, Resources: &api.Resources{CPU: new(50), MemoryMB: new(32)}}}}}}
}

// settled waits until what was placed of a job runs and its evaluations have ended.
func (g *golden) settled(job string, n int) (allocs []*api.AllocationListStub) {
	g.t.Helper()
	g.quietly(func() {
		allocs = g.c.running(job, n)
		eventually(g.t, "the evaluations of "+job+" end", func() bool {
			evals, _, err := g.c.api.Jobs().Evaluations(job, nil)
			return err == nil && !slices.ContainsFunc(evals, func(e *api.Evaluation) bool { return e.Status == "pending" })
		})
		for _, a := range allocs {
			eventually(g.t, "its tasks have started", func() bool {
				i, _, err := g.c.api.Allocations().Info(a.ID, nil)
				return err == nil && i.TaskStates[taskOf(i)] != nil && i.TaskStates[taskOf(i)].State == "running"
			})
		}
	})
	return allocs
}

func taskOf(a *api.Allocation) string { return a.GetTaskGroup().Tasks[0].Name }

// alloc is the only running allocation of a job.
func (g *golden) alloc(job string) *api.Allocation {
	g.t.Helper()
	stub := g.settled(job, 1)[0]
	a, _, err := g.c.api.Allocations().Info(stub.ID, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

// successful waits for the newest deployment of a job.
func (g *golden) successful(job string) *api.Deployment {
	return g.c.deployment(job, "successful")
}

var jobCommands = []goldenCommand{
	{"job run", in("submit-job", "read-job") + readsAgent, func(g *golden) {
		r, _, err := g.api.Jobs().RegisterOpts(web("1"), &api.RegisterOptions{Submission: &api.JobSubmission{Source: `job "web" {}`, Format: "hcl2"}}, nil)
		g.ok(err)
		g.ok(done(g.api.Agent().Self()))
		d := g.successful("web")
		g.settled("web", 1)
		q := &api.QueryOptions{Params: map[string]string{"related": "true"}}
		g.ok(ended(g.api.Evaluations().Info(r.EvalID, q)))
		g.ok(ended(g.api.Evaluations().Allocations(r.EvalID, nil)))
		g.ok(ended(g.api.Deployments().Info(d.ID, &api.QueryOptions{AllowStale: true, WaitIndex: 1})))
	}},
	{"job run -check-index", in("submit-job", "read-job"), func(g *golden) {
		_, _, err := g.api.Jobs().EnforceRegister(web("1"), 1, nil)
		refused(g.t, "an old index", err, "Enforcing job modify index 1: ")
		_, _, err = g.api.Jobs().EnforceRegister(web("1"), 0, nil)
		refused(g.t, "a new job", err, "Enforcing job modify index 0: ")
		_, _, err = g.api.Jobs().EnforceRegister(one("none"), 7, nil)
		refused(g.t, "a job that is gone", err, "Enforcing job modify index 7: ")
	}},
	{"job plan", in("submit-job", "read-job"), func(g *golden) {
		j := web("2")
		g.ok(ended(g.api.Jobs().PlanOpts(j, &api.PlanOptions{Diff: true}, nil)))
		g.ok(ended(g.api.Jobs().PlanOpts(web("1"), &api.PlanOptions{}, nil)))
		huge := one("huge")
		huge.TaskGroups[0].Tasks[0].Resources.MemoryMB = new(50_000)
		g.ok(ended(g.api.Jobs().PlanOpts(huge, &api.PlanOptions{Diff: true}, nil)))
		g.ok(ended(g.api.Jobs().PlanOpts(nightly(), &api.PlanOptions{Diff: false}, nil)))
	}},
	{"job validate", in("read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Validate(web("1"), nil)))
		bad := one("bad")
		bad.TaskGroups[0].Tasks[0].Driver = ""
		bad.Priority = new(1000)
		g.ok(ended(g.api.Jobs().Validate(bad, nil)))
	}},
	{"job status", in("list-jobs"), func(g *golden) {
		g.ok(ended(g.api.Jobs().List(&api.QueryOptions{PerPage: 20})))
	}},
	{"job status web", in("list-jobs", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().PrefixList("web")))
		g.ok(ended(g.api.Jobs().Info("web", nil)))
		g.ok(ended(g.api.Jobs().Allocations("web", true, nil)))
		g.ok(ended(g.api.Jobs().Evaluations("web", nil)))
		g.ok(ended(g.api.Jobs().LatestDeployment("web", nil)))
		g.ok(ended(g.api.Jobs().Summary("web", nil)))
	}},
	{"status we", in("list-jobs", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Search().PrefixSearch("we", contexts.All, nil)))
		g.ok(ended(g.api.Search().FuzzySearch("eb", contexts.All, nil)))
	}},
	{"job inspect", in("list-jobs", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().PrefixList("web")))
		g.ok(ended(g.api.Jobs().Submission("web", 0, nil)))
	}},
	{"job tag", in("submit-job", "read-job"), func(g *golden) {
		g.ok(done(g.api.Jobs().TagVersion("web", 0, "good", "it works", nil)))
		_, _, _, err := g.api.Jobs().VersionsOpts("web", &api.VersionsOptions{Diffs: true, DiffTag: "good"}, nil)
		g.ok(err)
		g.ok(done(g.api.Jobs().UntagVersion("web", "good", nil)))
	}},
	{"job history", in("submit-job", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Register(web("2"), nil)))
		var d *api.Deployment
		g.quietly(func() {
			eventually(g.t, "the canary is healthy", func() bool {
				d = g.c.deployment("web", "running")
				return d.TaskGroups["front"].HealthyAllocs == 1 && d.StatusDescription == "Deployment is running but requires manual promotion"
			})
		})
		_, _, _, err := g.api.Jobs().Versions("web", true, nil)
		g.ok(err)
	}},
	{"job promote", in("submit-job", "read-job"), func(g *golden) {
		d, _, err := g.api.Jobs().LatestDeployment("web", nil)
		g.ok(err)
		g.ok(ended(g.api.Deployments().PromoteAll(d.ID, nil)))
		g.successful("web")
		g.settled("web", 1)
	}},
	{"job deployments", in("read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Deployments("web", true, nil)))
	}},
	{"job scale", in("scale-job", "read-job-scaling", "list-scaling-policies", "read-scaling-policy", "read-job", "submit-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Scale("web", "front", new(2), "more", false, nil, nil)))
		g.settled("web", 2)
		g.successful("web")
		g.settled("web", 2)
		g.ok(ended(g.api.Jobs().ScaleStatus("web", nil)))
		list, _, err := g.api.Scaling().ListPolicies(nil)
		g.ok(err)
		g.ok(ended(g.api.Scaling().GetPolicy(list[0].ID, nil)))
	}},
	{"job revert", in("submit-job", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Revert("web", 1, nil, nil, "", "")))
		g.quietly(func() { g.c.running("web", 1) })
		g.successful("web")
		g.settled("web", 1)
		_, _, err := g.api.Jobs().Revert("web", 40, nil, nil, "", "")
		refused(g.t, "a version that was never", err, "version")
	}},
	{"job stable", in("submit-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Stable("web", 1, true, nil)))
	}},
	{"job eval", in("submit-job", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().EvaluateWithOpts("web", api.EvalOptions{ForceReschedule: true}, nil)))
		g.settled("web", 1)
	}},
	{"job dispatch", in("submit-job", "dispatch-job", "read-job"), func(g *golden) {
		j := one("grade")
		j.ParameterizedJob = &api.ParameterizedJobConfig{Payload: "optional", MetaRequired: []string{"student"}}
		g.ok(ended(g.api.Jobs().Register(j, nil)))
		o := api.DispatchOptions{JobID: "grade", Meta: map[string]string{"student": "ada"}, Payload: []byte("x")}
		r, _, err := g.api.Jobs().DispatchOpts(&o, &api.WriteOptions{IdempotencyToken: "once"})
		g.ok(err)
		g.settled(r.DispatchedJobID, 1)
		g.ok(ended(g.api.Jobs().DispatchOpts(&o, &api.WriteOptions{IdempotencyToken: "once"})))
		_, _, err = g.api.Jobs().DispatchOpts(&api.DispatchOptions{JobID: "grade"}, nil)
		refused(g.t, "without meta", err, "student")
		g.ok(ended(g.api.Jobs().Info("grade", nil)))
		g.ok(ended(g.api.Jobs().Info(r.DispatchedJobID, nil)))
		g.ok(ended(g.api.Jobs().Summary("grade", nil)))
	}},
	{"job periodic force", in("submit-job", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Register(nightly(), nil)))
		id, _, err := g.api.Jobs().PeriodicForce("nightly", nil)
		g.ok(err)
		g.quietly(func() {
			e, _, err := g.c.api.Evaluations().Info(id, nil)
			g.ok(err)
			g.settled(e.JobID, 1)
		})
		g.ok(ended(g.api.Jobs().Info("nightly", nil)))
	}},
	{"job run of an update by its own route", in("submit-job"), func(g *golden) {
		g.raw("PUT", "/v1/job/tiny", `{"Job":{"ID":"tiny","Type":"batch","Datacenters":["dc1"],"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Driver":"mock"}]}]}}`)
		g.quietly(func() { g.c.running("tiny", 1) })
	}},
	{"job parse", in("parse-job"), func(g *golden) {
		g.ok(done(g.api.Jobs().ParseHCL("job \"x\" {\n group \"g\" {\n  task \"t\" {\n   driver = \"mock\"\n  }\n }\n}\n", true)))
		g.raw("PUT", "/v1/jobs/parse", `{"JobHCL":"job {"}`)
	}},
	{"job run of what has no room", in("submit-job", "read-job"), func(g *golden) {
		j := one("huge")
		j.TaskGroups[0].Tasks[0].Resources.MemoryMB = new(50_000)
		r, _, err := g.api.Jobs().Register(j, nil)
		g.ok(err)
		var blocked string
		g.quietly(func() {
			eventually(g.t, "the evaluation has ended", func() bool {
				e, _, err := g.c.api.Evaluations().Info(r.EvalID, nil)
				blocked = e.BlockedEval
				return err == nil && e.Status == "complete"
			})
		})
		g.ok(ended(g.api.Evaluations().Info(r.EvalID, &api.QueryOptions{Params: map[string]string{"related": "true"}})))
		g.ok(ended(g.api.Evaluations().Info(blocked, nil)))
		g.ok(ended(g.api.Jobs().Allocations("huge", true, nil)))
		g.ok(ended(g.api.Jobs().LatestDeployment("huge", nil)))
	}},
	{"service list, info", in("read-job"), func(g *golden) {
		a := g.alloc("web")
		g.quietly(func() {
			eventually(g.t, "the service is registered once", func() bool {
				l, _, err := g.c.api.Services().Get("web", nil)
				return err == nil && len(l) == 1 && l[0].AllocID == a.ID
			})
		})
		g.ok(ended(g.api.Services().List(nil)))
		g.ok(ended(g.api.Services().Get("web", nil)))
		g.ok(ended(g.api.Jobs().Services("web", nil)))
		g.ok(ended(g.api.Allocations().Services(a.ID, nil)))
		g.ok(ended(g.api.Services().Get("none", nil)))
	}},
}

func nightly() *api.Job {
	j := one("nightly")
	j.Periodic = &api.PeriodicConfig{Specs: []string{"0 0 1 1 *"}, TimeZone: new("UTC")}
	return j
}

var allocCommands = []goldenCommand{
	{"alloc status", in("read-job"), func(g *golden) {
		a := g.alloc("web")
		g.ok(ended(g.api.Allocations().PrefixList(a.ID[:8])))
		g.ok(ended(g.api.Allocations().Info(a.ID, nil)))
		g.ok(done(g.api.Allocations().Checks(a.ID, nil)))
	}},
	{"alloc status, the figures", in("read-job") + readsNodes, func(g *golden) {
		a := g.alloc("web")
		g.shape = true
		g.ok(done(g.api.Allocations().Stats(a, nil)))
	}},
	{"alloc status of what was just placed", in("read-job") + readsNodes, func(g *golden) {
		// On a node that says nothing it stays as it was placed.
		n := newModelNode()
		n.Name, n.NodePool, n.NodeClass = "node-2", "quiet", ""
		n.Drivers = map[string]*model.DriverInfo{"mock": {Detected: true, Healthy: true}}
		var id string
		g.quietly(func() {
			f := &node{c: g.c, id: n.ID, secret: n.SecretID}
			if status, body := f.put("register", n); status != 200 {
				g.t.Fatalf("register: %d %s", status, body)
			}
			j := one("fresh")
			j.NodePool = new("quiet")
			g.c.register(j)
			eventually(g.t, "it is placed", func() bool {
				l, _, err := g.c.api.Jobs().Allocations("fresh", false, nil)
				if err == nil && len(l) == 1 {
					id = l[0].ID
				}
				return id != ""
			})
		})
		g.ok(ended(g.api.Allocations().Info(id, nil)))
		g.ok(ended(g.api.Jobs().Allocations("fresh", true, nil)))
		g.ok(ended(g.api.Nodes().Allocations(n.ID, nil)))
		g.quietly(func() {
			g.ok(ended(g.c.api.Jobs().Deregister("fresh", true, nil)))
			g.ok(ended(g.c.api.Nodes().Purge(n.ID, nil)))
		})
	}},
	{"alloc logs", in("read-logs", "read-job") + readsNodes, func(g *golden) {
		a := g.alloc("web")
		for _, kind := range []string{"stdout", "stderr"} {
			frames, errs := g.api.AllocFS().Logs(a, false, "server", kind, "start", 0, nil, nil)
			for range frames {
			}
			g.noError(errs)
		}
		g.raw("GET", "/v1/client/fs/logs/"+a.ID+"?task=server&type=stdout&origin=end&offset=4&plain=true", "")
		g.raw("GET", "/v1/client/fs/logs/"+a.ID+"?task=none&type=stdout", "")
		g.raw("GET", "/v1/client/fs/logs/"+a.ID+"?task=server&type=odd", "")
		g.raw("GET", "/v1/client/fs/logs/"+a.ID+"?type=stdout", "")
	}},
	{"alloc fs", in("read-fs", "read-job") + readsNodes, func(g *golden) {
		a := g.alloc("web")
		log := "alloc/logs/server.stdout.0"
		g.ok(ended(g.api.AllocFS().List(a, "/", nil)))
		g.ok(ended(g.api.AllocFS().List(a, "alloc/logs", nil)))
		g.ok(ended(g.api.AllocFS().Stat(a, log, nil)))
		for _, open := range []func() (io.ReadCloser, error){
			func() (io.ReadCloser, error) { return g.api.AllocFS().Cat(a, log, nil) },
			func() (io.ReadCloser, error) { return g.api.AllocFS().ReadAt(a, log, 2, 3, nil) },
		} {
			r, err := open()
			g.ok(err)
			if err == nil {
				r.Close()
			}
		}
		for _, path := range []string{"ls/%s?path=none", "stat/%s?path=none", "cat/%s?path=none", "readat/%s?path=none&offset=0&limit=1", "stream/%s?path=none&follow=false",
			"stream/%s?path=" + log + "&origin=start&offset=0&follow=false", "ls/%s?path=../../..", "readat/%s?path=" + log + "&offset=0", "stat/%s"} {
			g.raw("GET", "/v1/client/fs/"+fmt.Sprintf(path, a.ID), "")
		}
	}},
	{"alloc exec, before it dials", in("alloc-exec", "read-job") + readsNodes, func(g *golden) {
		a := g.alloc("web")
		g.ok(ended(g.api.Allocations().PrefixList(a.ID[:8])))
		g.ok(ended(g.api.Nodes().Info(a.NodeID, nil)))
		var out bytes.Buffer
		code, err := g.c.client(g.token).Allocations().Exec(g.t.Context(), a, "server", false, []string{"echo", "hi"}, strings.NewReader(""), &out, io.Discard, nil, nil)
		if err != nil || code != 0 || out.String() != "hi\n" {
			g.t.Errorf("exec: %d, %v, %q", code, err, out.String())
		}
		g.raw("GET", "/v1/client/allocation/"+a.ID+"/exec?task=server&command=[\"echo\"]", "")
	}},
	{"alloc restart, signal", in("alloc-lifecycle", "read-job") + readsNodes, func(g *golden) {
		a := g.alloc("web")
		g.ok(g.api.Allocations().Signal(a, nil, "server", "SIGHUP"))
		g.ok(g.api.Allocations().Signal(a, nil, "", "SIGHUP"))
		g.ok(g.api.Allocations().Restart(a, "server", nil))
		g.alloc("web")
		g.ok(g.api.Allocations().RestartAllTasks(a, nil))
		g.alloc("web")
		refused(g.t, "an unknown task", g.api.Allocations().Restart(a, "none", nil), "500 (Could not find task runner for task: none)")
		refused(g.t, "an unknown task", g.api.Allocations().Signal(a, nil, "none", "SIGHUP"), "500 (Could not find task runner for task: none)")
		g.raw("PUT", "/v1/client/allocation/"+a.ID+"/signal", `{"Task":"server","Signal":"SIGODD"}`)
		g.raw("PUT", "/v1/client/allocation/"+unknownID+"/signal", `{"Task":"server","Signal":"SIGHUP"}`)
		g.raw("PUT", "/v1/client/allocation/"+unknownID+"/restart", `{}`)
	}},
	{"alloc stop", in("alloc-lifecycle", "read-job"), func(g *golden) {
		a := g.alloc("web")
		r, err := g.api.Allocations().Stop(a, nil)
		g.ok(err)
		g.quietly(func() {
			eventually(g.t, "it has stopped", func() bool {
				i, _, err := g.c.api.Allocations().Info(a.ID, nil)
				return err == nil && i.ClientStatus == "complete"
			})
		})
		g.alloc("web")
		g.ok(ended(g.api.Evaluations().Info(r.EvalID, nil)))
		g.ok(ended(g.api.Allocations().Info(a.ID, nil)))
	}},
	{"eval list, status", in("read-job"), func(g *golden) {
		g.ok(ended(g.api.Evaluations().List(&api.QueryOptions{Params: map[string]string{"job": "huge"}})))
		g.ok(ended(g.api.Evaluations().List(&api.QueryOptions{Params: map[string]string{"status": "blocked"}})))
		g.ok(ended(g.api.Evaluations().Count(&api.QueryOptions{Filter: `JobID == "huge"`})))
	}},
	{"alloc gc", in("submit-job", "read-job"), func(g *golden) {
		a := g.alloc("web")
		if err := g.api.Allocations().GC(a, nil); err == nil {
			g.t.Error("what runs was collected")
		}
		g.raw("PUT", "/v1/client/allocation/"+a.ID+"/gc", "")
	}},
	{"alloc pause", "", func(g *golden) {
		g.raw("GET", "/v1/client/allocation/"+g.alloc("web").ID+"/pause?task=server", "")
	}},
}

func (g *golden) noError(errs <-chan error) {
	g.t.Helper()
	select {
	case err := <-errs:
		g.ok(err)
	default:
	}
}

var deploymentCommands = []goldenCommand{
	{"deployment list, status", in("read-job", "submit-job"), func(g *golden) {
		d := g.c.deployment("web", "successful")
		g.ok(ended(g.api.Deployments().List(&api.QueryOptions{Filter: `ID == "` + d.ID + `"`})))
		g.ok(ended(g.api.Deployments().PrefixList(d.ID[:8])))
		g.ok(ended(g.api.Deployments().Info(d.ID, nil)))
		g.ok(ended(g.api.Deployments().Allocations(d.ID, nil)))
		for _, f := range []func() error{
			func() error { return ended(g.api.Deployments().Fail(d.ID, nil)) },
			func() error { return ended(g.api.Deployments().Pause(d.ID, true, nil)) },
			func() error { return ended(g.api.Deployments().Info(unknownID, nil)) },
			func() error { return ended(g.api.Deployments().Info("none", nil)) },
			func() error { return ended(g.api.Deployments().PromoteAll(unknownID, nil)) },
		} {
			if f() == nil {
				g.t.Error("it was done")
			}
		}
	}},
	{"deployment pause, resume, fail", in("submit-job", "read-job"), func(g *golden) {
		g.quietly(func() {
			g.c.register(web("3"))
			g.settled("web", 2)
			eventually(g.t, "the canary is healthy", func() bool {
				d := g.c.deployment("web", "running")
				return d.TaskGroups["front"].HealthyAllocs == 1
			})
		})
		d := g.c.deployment("web", "running")
		g.ok(ended(g.api.Deployments().Pause(d.ID, true, nil)))
		g.ok(ended(g.api.Deployments().Info(d.ID, nil)))
		g.ok(ended(g.api.Deployments().Pause(d.ID, false, nil)))
		_, _, err := g.api.Deployments().Unblock(d.ID, nil)
		refused(g.t, "unblock", err, "unblock")
		g.ok(ended(g.api.Deployments().SetAllocHealth(d.ID, d.TaskGroups["front"].PlacedCanaries, nil, nil)))
		g.ok(ended(g.api.Deployments().Fail(d.ID, nil)))
		g.settled("web", 1)
		g.ok(ended(g.api.Deployments().Info(d.ID, nil)))
	}},
}

var nodeCommands = []goldenCommand{
	{"node status", readsNodes, func(g *golden) {
		g.ok(ended(g.api.Nodes().List(&api.QueryOptions{PerPage: 20, Params: map[string]string{"resources": "true", "os": "true"}})))
		g.ok(ended(g.api.Nodes().List(nil)))
		g.ok(ended(g.api.Nodes().PrefixList(g.node.ID()[:8])))
	}},
	{"node status of one", readsNodes, func(g *golden) {
		g.ok(ended(g.api.Nodes().Info(g.node.ID(), nil)))
	}},
	{"node status, the figures", readsNodes, func(g *golden) {
		g.shape = true
		g.ok(done(g.api.Nodes().Stats(g.node.ID(), nil)))
	}},
	{"node eligibility", writeNodes, func(g *golden) {
		g.ok(done(g.api.Nodes().ToggleEligibility(g.node.ID(), false, nil)))
		g.ok(done(g.api.Nodes().ToggleEligibility(g.node.ID(), true, nil)))
		g.raw("PUT", "/v1/node/"+g.node.ID()+"/eligibility", `{"NodeID":"`+g.node.ID()+`","Eligibility":"odd"}`)
	}},
	{"node eval", writeNodes, func(g *golden) {
		g.raw("PUT", "/v1/node/"+g.node.ID()+"/evaluate", "")
	}},
	{"node drain", writeNodes + in("read-job"), func(g *golden) {
		// A node of its own, so that the drain moves nothing.
		n := newModelNode()
		n.Name, n.NodePool = "node-3", "spare"
		g.quietly(func() {
			f := &node{c: g.c, id: n.ID, secret: n.SecretID}
			if status, body := f.put("register", n); status != 200 {
				g.t.Fatalf("register: %d %s", status, body)
			}
		})
		g.ok(done(g.api.Nodes().UpdateDrainOpts(n.ID, &api.DrainOptions{DrainSpec: &api.DrainSpec{Deadline: time.Hour, IgnoreSystemJobs: true}, Meta: map[string]string{"why": "rack"}}, nil)))
		ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
		defer cancel()
		g.quietly(func() { // how often it asks is a matter of time
			for range g.api.Nodes().MonitorDrain(ctx, n.ID, 1, true) {
			}
		})
		g.ok(ctx.Err())
		g.ok(ended(g.api.Nodes().Info(n.ID, nil)))
		g.ok(done(g.api.Nodes().UpdateDrain(n.ID, nil, true, nil)))
		g.ok(ended(g.api.Nodes().Purge(n.ID, nil)))
		g.raw("GET", "/v1/node/"+n.ID, "")
	}},
	{"node drain -force of nothing, and eligibility while it drains", writeNodes, func(g *golden) {
		g.raw("PUT", "/v1/node/"+unknownID+"/drain", `{"NodeID":"`+unknownID+`","DrainSpec":{"Deadline":-1}}`)
		g.raw("PUT", "/v1/node/"+unknownID+"/purge", "")
		g.raw("PUT", "/v1/node/"+unknownID+"/eligibility", `{"Eligibility":"eligible"}`)
	}},
	{"node meta", writeNodes, func(g *golden) {
		g.ok(done(g.api.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{NodeID: g.node.ID(), Meta: map[string]*string{"rack": new("r1")}}, nil)))
		g.ok(done(g.api.Nodes().Meta().Read(g.node.ID(), nil)))
	}},
	{"node gc", writeNodes, func(g *golden) {
		g.ok(g.api.Nodes().GC(g.node.ID(), nil))
		g.raw("PUT", "/v1/client/gc?node_id="+g.node.ID(), "")
	}},
	{"node pool apply, list, info, jobs, nodes, delete", writePools + readsNodes + in("list-jobs"), func(g *golden) {
		p := &api.NodePool{Name: "gpu", Description: "d", Meta: map[string]string{"a": "b"}, SchedulerConfiguration: &api.NodePoolSchedulerConfiguration{SchedulerAlgorithm: "spread"}}
		g.ok(done(g.api.NodePools().Register(p, nil)))
		g.raw("PUT", "/v1/node/pool/gpu", `{"Name":"gpu","Description":"e"}`)
		g.ok(ended(g.api.NodePools().List(nil)))
		g.ok(ended(g.api.NodePools().PrefixList("g", nil)))
		g.ok(ended(g.api.NodePools().Info("gpu", nil)))
		g.ok(ended(g.api.NodePools().ListJobs("gpu", nil)))
		g.ok(ended(g.api.NodePools().ListNodes("gpu", nil)))
		g.ok(ended(g.api.NodePools().ListNodes("default", nil)))
		g.ok(done(g.api.NodePools().Delete("gpu", nil)))
		g.ok2(g.api.NodePools().Info("gpu", nil))
		g.raw("DELETE", "/v1/node/pool/default", "")
		g.raw("PUT", "/v1/node/pools", `{"Name":"not a name!"}`)
	}},
}

// ok2 notes a refusal that nomad/api is to see as one.
func (g *golden) ok2(_, _ any, err error) {
	g.t.Helper()
	if err == nil {
		g.t.Error("it was not refused")
	}
}

var endCommands = []goldenCommand{
	{"service delete", in("submit-job", "read-job"), func(g *golden) {
		l, _, err := g.c.api.Services().Get("web", nil)
		g.ok(err)
		g.ok(done(g.api.Services().Delete("web", l[0].ID, nil)))
		g.raw("DELETE", "/v1/service/web/none", "")
	}},
	{"job stop", in("submit-job", "read-job", "list-jobs"), func(g *golden) {
		g.ok(ended(g.api.Jobs().DeregisterOpts("tiny", &api.DeregisterOptions{EvalPriority: 60, NoShutdownDelay: true}, nil)))
		g.quietly(func() {
			eventually(g.t, "it is over", func() bool {
				l, _, err := g.c.api.Jobs().Allocations("tiny", true, nil)
				j, _, _ := g.c.api.Jobs().Info("tiny", nil)
				return err == nil && len(l) == 1 && l[0].ClientStatus == "complete" && *j.Status == "dead"
			})
		})
		g.ok(ended(g.api.Jobs().Info("tiny", nil)))
		g.ok(ended(g.api.Jobs().Allocations("tiny", true, nil)))
		g.ok(ended(g.api.Jobs().Summary("tiny", nil)))
	}},
	{"job stop -purge", in("submit-job", "read-job"), func(g *golden) {
		a := g.alloc("web")
		g.ok(ended(g.api.Jobs().Deregister("web", true, nil)))
		g.ok2(g.api.Jobs().Info("web", nil))
		g.ok2(g.api.Allocations().Info(a.ID, nil))
		g.ok(ended(g.api.Jobs().Allocations("web", true, nil)))
		g.ok2(g.api.Jobs().Summary("web", nil))
		g.ok(ended(g.api.Jobs().LatestDeployment("web", nil)))
		g.ok(ended(g.api.Jobs().Deregister("never", false, nil)))
	}},
	{"system gc, reconcile summaries", "", func(g *golden) {
		g.ok(g.api.System().GarbageCollect())
		g.ok(g.api.System().ReconcileSummaries())
	}},
	{"eval delete", "", func(g *golden) {
		g.quietly(func() {
			_, _, err := g.c.api.Operator().SchedulerSetConfiguration(&api.SchedulerConfiguration{SchedulerAlgorithm: "binpack", PauseEvalBroker: true}, nil)
			g.ok(err)
		})
		g.ok2(nil, nil, done(g.api.Evaluations().Delete([]string{unknownID}, nil)))
		evals, _, err := g.c.api.Jobs().Evaluations("huge", nil)
		g.ok(err)
		g.ok(done(g.api.Evaluations().Delete([]string{evals[0].ID}, nil)))
		g.ok(ended(g.api.Evaluations().DeleteOpts(&api.EvalDeleteRequest{Filter: `JobID == "nothing"`}, nil)))
		g.quietly(func() {
			_, _, err := g.c.api.Operator().SchedulerSetConfiguration(&api.SchedulerConfiguration{SchedulerAlgorithm: "binpack"}, nil)
			g.ok(err)
		})
		g.ok2(nil, nil, done(g.api.Evaluations().Delete([]string{unknownID}, nil)))
	}},
	{"registrations are refused", in("submit-job"), func(g *golden) {
		if g.acl { // management may all the same
			g.c.policy("submits", in("submit-job"))
			g.as(g.c.tokenOf("submits").SecretID)
		}
		g.quietly(func() {
			_, _, err := g.c.api.Operator().SchedulerSetConfiguration(&api.SchedulerConfiguration{SchedulerAlgorithm: "binpack", RejectJobRegistration: true}, nil)
			g.ok(err)
		})
		g.ok2(g.api.Jobs().Register(one("late"), nil))
	}},
}
