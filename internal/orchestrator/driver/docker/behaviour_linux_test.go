package docker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// node is one node's driver on the real engine.
type node struct {
	*testing.T
	engine *engine
	driver *docker.Driver
}

func newNode(t *testing.T, cfg docker.Config) node {
	t.Helper()
	e := realEngine(t)
	if cfg.Endpoint == "" {
		cfg.Endpoint = e.endpoint
	}
	if cfg.Node == "" {
		cfg.Node = ident.New()
	}
	cfg.Files = filesOf
	n := node{t, e, open(t, cfg)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.driver.Detach(ctx); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	return n
}

// config is a task that waits for ever, with some more configuration.
func (n node) config(more map[string]any) driver.TaskConfig {
	config := map[string]any{"image": testImage, "command": "sleep", "args": []any{"infinity"}}
	for k, v := range more {
		config[k] = v
	}
	alloc := ident.New()
	return driver.TaskConfig{ID: alloc + ".task.1", AllocID: alloc, StateDir: n.TempDir(), Emit: func(string) {},
		Task: &model.Task{Name: "task", Driver: docker.Name, Config: config}, Resources: model.AllocatedTask{CPU: 100, MemoryMB: 64}, DiskMB: 64,
		Env: map[string]string{"OWN": "task", "NOMAD_ALLOC_ID": alloc}}
}

func (n node) start(cfg driver.TaskConfig) driver.Task {
	n.Helper()
	task, err := n.driver.Start(n.Context(), cfg)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { n.cleanUp(cfg) })
	return task
}

func (n node) cleanUp(cfg driver.TaskConfig) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.driver.Cleanup(ctx, cfg.ID); err != nil {
		n.Errorf("cleanup: %v", err)
	}
}

// container is what the engine says about a task's container.
func (n node) container(cfg driver.TaskConfig) container.InspectResponse {
	n.Helper()
	found, err := n.engine.api.ContainerList(n.Context(), client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", "rockpool.task="+cfg.ID)})
	if err != nil || len(found.Items) != 1 {
		n.Fatalf("%d containers, %v", len(found.Items), err)
	}
	r, err := n.engine.api.ContainerInspect(n.Context(), found.Items[0].ID, client.ContainerInspectOptions{})
	if err != nil {
		n.Fatal(err)
	}
	return r.Container
}

type outcome struct {
	out, err string
	driver.ExecResult
	fate error
}

func (n node) begin(task driver.Task, spec driver.ExecSpec) driver.Execution {
	n.Helper()
	e, err := task.Exec(n.Context(), spec)
	if err != nil {
		n.Fatal(err)
	}
	return e
}

func (n node) finish(e driver.Execution) (o outcome) {
	n.Helper()
	var wg sync.WaitGroup
	read := func(r io.Reader, into *string) {
		if r != nil {
			wg.Go(func() { b, _ := io.ReadAll(r); *into = string(b) })
		}
	}
	read(e.Stdout(), &o.out)
	read(e.Stderr(), &o.err)
	select {
	case <-e.Done():
	case <-time.After(patience):
		n.Fatal("the execution does not end")
	}
	wg.Wait()
	o.ExecResult, o.fate = e.Result()
	return o
}

func (n node) run(task driver.Task, spec driver.ExecSpec) outcome {
	n.Helper()
	e := n.begin(task, spec)
	_ = e.Stdin().Close()
	return n.finish(e)
}

func (n node) sh(task driver.Task, script string) outcome {
	n.Helper()
	o := n.run(task, driver.ExecSpec{Argv: []string{"sh", "-c", script}})
	if o.fate != nil {
		n.Fatalf("%s: %v", script, o.fate)
	}
	return o
}

// processes counts those in the container.
func (n node) processes(task driver.Task) int64 {
	n.Helper()
	u, err := task.Usage(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	return u.PIDs
}

func TestEachKeyIsHonoured(t *testing.T) {
	n := newNode(t, docker.Config{})
	for _, c := range []struct {
		key    string
		value  any
		script string // of an execution inside
		want   string
		engine func(container.InspectResponse) (got, want any)
	}{
		{"image", testImage, `echo $FROM`, "image\n", nil},
		{"command", "sleep", "", "", func(r container.InspectResponse) (any, any) { return r.Config.Cmd[0], "sleep" }},
		{"args", []any{"300"}, `cat /proc/*/cmdline | head -c 1000`, "300", nil},
		{"work_dir", "/tmp", `pwd`, "/tmp\n", nil},
		{"entrypoint", []any{"sh", "-c", `"$@"`, "sh"}, `cat /proc/*/cmdline | head -c 1000`, "\"$@\"", nil},
		{"network_mode", "none", `head -n 9 /proc/net/dev | cat`, "lo:", func(r container.InspectResponse) (any, any) { return string(r.HostConfig.NetworkMode), "none" }},
		{"memory_hard_limit", 96, "", "", func(r container.InspectResponse) (any, any) {
			return [3]int64{r.HostConfig.Memory, r.HostConfig.MemorySwap, r.HostConfig.MemoryReservation}, [3]int64{96 << 20, 96 << 20, 64 << 20}
		}},
		{"pids_limit", 20, `{ i=0; while [ $i -lt 30 ]; do sleep 1 & i=$((i+1)); done; } 2>&1`, "Cannot fork", func(r container.InspectResponse) (any, any) {
			return *r.HostConfig.PidsLimit, int64(20)
		}},
		{"ulimit", []any{map[string]any{"nproc": "123:456", "nofile": 789}}, `cat /proc/self/limits`, "Max processes             123                  456", func(r container.InspectResponse) (any, any) {
			return fmt.Sprint(r.HostConfig.Ulimits), "[nofile=789:789 nproc=123:456]"
		}},
		{"runtime", "second", `echo inside`, "inside\n", func(r container.InspectResponse) (any, any) { return r.HostConfig.Runtime, "second" }},
		{"cpu_hard_limit", true, "", "", func(r container.InspectResponse) (any, any) { return r.HostConfig.CPUQuota, int64(10000) }},
		{"readonly_rootfs", true, `echo x >/tmp/x || echo refused`, "refused\n", nil},
		{"hostname", "name", `cat /proc/sys/kernel/hostname`, "name\n", nil},
		{"labels", []any{map[string]any{"a": "b"}}, "", "", func(r container.InspectResponse) (any, any) { return r.Config.Labels["a"], "b" }},
	} {
		t.Run(c.key, func(t *testing.T) {
			n := node{t, n.engine, n.driver}
			cfg := n.config(map[string]any{c.key: c.value})
			task := n.start(cfg)
			if c.script != "" {
				if o := n.sh(task, c.script); !strings.Contains(o.out, c.want) {
					t.Errorf("inside: %q, want %q (%s)", o.out, c.want, o.err)
				}
			}
			if c.engine != nil {
				if got, want := c.engine(n.container(cfg)); got != want {
					t.Errorf("the engine has %v, want %v", got, want)
				}
			}
		})
	}
}

func TestContainersAreHardened(t *testing.T) {
	n := newNode(t, docker.Config{})
	cfg := n.config(nil)
	task := n.start(cfg)
	status := n.sh(task, `cat /proc/self/status`).out
	for _, line := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, line) {
			t.Errorf("a program's status has no %q:\n%s", line, status)
		}
	}
	if names := n.sh(task, `ls /sys/class/net`).out; names != "lo\n" {
		t.Errorf("network of a job that asks for none: %q", names)
	}
	if o := n.sh(task, `cat /proc/self/oom_score_adj; (echo 0 > /proc/self/oom_score_adj) 2>/dev/null; cat /proc/self/oom_score_adj`); o.out != "500\n500\n" {
		t.Errorf("score: %q", o.out)
	}
	if o := n.run(task, driver.ExecSpec{Argv: []string{"id", "-u"}, User: "user"}); o.out != "1000\n" {
		t.Errorf("id of the user: %+v", o)
	}
	r := n.container(cfg)
	if h := r.HostConfig; h.Memory != 64<<20 || h.MemorySwap != 64<<20 || *h.PidsLimit != 512 || h.LogConfig.Type != "none" || h.RestartPolicy.Name != "no" || h.Privileged || len(h.Binds)+len(h.Mounts) > 0 {
		t.Errorf("%+v", h)
	}
}

func TestVerdicts(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(nil))
	before := n.processes(task)
	selfKilled := driver.ExecResult{Verdict: "signal", ExitCode: 137, Signal: 9}
	if !kernelTellsEnds(t) {
		selfKilled = driver.ExecResult{Verdict: "exit", ExitCode: 137} // the engine's number alone may be the program's choice
	}
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for name, c := range map[string]struct {
		spec driver.ExecSpec
		want driver.ExecResult // as far as it is the same each time
		out  string
	}{
		"exit code of a killed program, by choice": {driver.ExecSpec{Argv: sh(`exit 137`)}, driver.ExecResult{Verdict: "exit", ExitCode: 137}, ""},
		"signal by itself":                         {driver.ExecSpec{Argv: sh(`sleep 0.2; kill -9 $$`)}, selfKilled, ""},
		"time": {driver.ExecSpec{Argv: sh(`echo a; sleep 300`), TimeLimit: 300 * time.Millisecond},
			driver.ExecResult{Verdict: "time limit", ExitCode: 137, Signal: 9, OutputBytes: 2}, "a\n"},
		"time with grace": {driver.ExecSpec{Argv: sh(`trap 'echo last; exit 5' QUIT; while :; do sleep 0.05; done`), TimeLimit: 300 * time.Millisecond, Grace: patience},
			driver.ExecResult{Verdict: "time limit", ExitCode: 5, OutputBytes: 5}, "last\n"},
		"CPU time": {driver.ExecSpec{Argv: sh(`while :; do :; done`), CPULimit: 200 * time.Millisecond},
			driver.ExecResult{Verdict: "cpu limit", ExitCode: 137, Signal: 9}, ""},
		"output": {driver.ExecSpec{Argv: sh(`while :; do echo 0123456789; done`), OutputLimit: 25},
			driver.ExecResult{Verdict: "output limit", ExitCode: 137, Signal: 9, OutputBytes: 25}, "0123456789\n0123456789\n012"},
		"memory": {driver.ExecSpec{Argv: []string{"tail", "/dev/zero"}}, driver.ExecResult{Verdict: "memory limit", ExitCode: 137, Signal: 9, OOMKilled: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := node{t, n.engine, n.driver}
			o := n.run(task, c.spec)
			if o.WallTime <= 0 {
				t.Errorf("wall time %v", o.WallTime)
			}
			if c.want.Verdict == "cpu limit" && o.CPUTime < c.spec.CPULimit {
				t.Errorf("CPU time %v", o.CPUTime)
			}
			got := o.ExecResult
			got.WallTime, got.CPUTime, got.PeakMemory = 0, 0, 0
			if o.fate != nil || got != c.want || o.out != c.out {
				t.Errorf("%+v, %v, output %q", got, o.fate, o.out)
			}
		})
	}
	if after := n.processes(task); after != before {
		t.Errorf("%d processes, before there were %d", after, before)
	}
}

// kernelTellsEnds says whether the kernel tells how a process ended that is no child of the asker (Linux 6.15).
func kernelTellsEnds(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 15
}

// TestNothingOutlivesAnExecution tries to get away by daemons of all kinds, beside an execution that must not be hit.
func TestNothingOutlivesAnExecution(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(nil))
	before := n.processes(task)
	neighbour := n.begin(task, driver.ExecSpec{Argv: []string{"cat"}})
	const daemons = `setsid sh -c '(sleep 300 & sleep 300 &) ; sleep 300 &' ; (setsid sleep 300 &) ; echo started; `
	if o := n.sh(task, daemons); o.ExitCode != 0 || o.out != "started\n" {
		t.Errorf("%+v", o)
	}
	e := n.begin(task, driver.ExecSpec{Argv: []string{"sh", "-c", daemons + `sleep 300`}})
	if _, err := io.ReadFull(e.Stdout(), make([]byte, len("started\n"))); err != nil {
		t.Fatal(err)
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if o := n.finish(e); o.fate != nil || o.Verdict != string(sandbox.VerdictKilled) || o.Signal != 9 {
		t.Errorf("%+v", o)
	}
	if now := n.processes(task); now != before+1 {
		t.Errorf("%d processes, want %d and the neighbour", now, before)
	}
	if _, err := io.WriteString(neighbour.Stdin(), "alive"); err != nil {
		t.Error(err)
	}
	_ = neighbour.Stdin().Close()
	if o := n.finish(neighbour); o.fate != nil || o.out != "alive" || o.ExitCode != 0 {
		t.Errorf("neighbour: %+v", o)
	}
}

func TestAServiceLivesOnUntilTheTaskEnds(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(nil))
	before := n.processes(task)
	o := n.run(task, driver.ExecSpec{Argv: []string{"sh", "-c", `sleep 300 & echo started`}, Background: true})
	if o.fate != nil || o.ExitCode != 0 || o.out != "started\n" {
		t.Errorf("%+v", o)
	}
	if now := n.processes(task); now != before+1 {
		t.Errorf("%d processes, want %d and the service", now, before)
	}
}

func TestFiguresOfAnExecution(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(nil))
	o := n.sh(task, `i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo out; echo err >&2`)
	if o.CPUTime <= 0 || o.WallTime < o.CPUTime/2 || o.OutputBytes != 8 || o.ExitCode != 0 {
		t.Errorf("%+v", o)
	}
	u, err := task.Usage(t.Context())
	if err != nil || u.MemoryBytes <= 0 || u.CPUTime <= 0 || u.PIDs < 1 {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestWhatIsNotOffered(t *testing.T) {
	n := newNode(t, docker.Config{})
	for name, c := range map[string]struct {
		change func(cfg *driver.TaskConfig)
		says   string
	}{
		"host image":       {func(c *driver.TaskConfig) { c.Task.Config["image"] = "host" }, `"sandbox"`},
		"no image":         {func(c *driver.TaskConfig) { delete(c.Task.Config, "image") }, "image"},
		"host network":     {func(c *driver.TaskConfig) { c.Task.Config["network_mode"] = "host" }, "network_mode"},
		"other's network":  {func(c *driver.TaskConfig) { c.Task.Config["network_mode"] = "container:x" }, "network_mode"},
		"CNI network":      {func(c *driver.TaskConfig) { c.Networks = []model.Network{{Mode: "cni/x"}} }, "cni/x"},
		"unknown runtime":  {func(c *driver.TaskConfig) { c.Task.Config["runtime"] = "kata" }, "runc"},
		"unknown key":      {func(c *driver.TaskConfig) { c.Task.Config["colour"] = "red" }, "colour"},
		"volumes":          {func(c *driver.TaskConfig) { c.Task.Config["volumes"] = []any{"/:/host"} }, "volumes"},
		"unknown limit":    {func(c *driver.TaskConfig) { c.Task.Config["ulimit"] = map[string]any{"shoes": 1} }, "shoes"},
		"our labels":       {func(c *driver.TaskConfig) { c.Task.Config["labels"] = map[string]any{"rockpool.node": "x"} }, "rockpool."},
		"ports of nobody":  {func(c *driver.TaskConfig) { c.Task.Config["ports"] = []any{"http"} }, "ports"},
		"a device":         {func(c *driver.TaskConfig) { c.Resources.Devices = []model.AllocatedDevice{{Type: "gpu"}} }, "devices"},
		"an unknown image": {func(c *driver.TaskConfig) { c.Task.Config["image"] = "127.0.0.1:1/none" }, "127.0.0.1:1/none"},
	} {
		cfg := n.config(nil)
		c.change(&cfg)
		if _, err := n.driver.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v does not say %q", name, err, c.says)
			n.cleanUp(cfg)
		}
	}
	left, err := n.engine.api.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil || len(left.Items) > 0 {
		t.Errorf("%d containers were left, %v", len(left.Items), err)
	}
}

func TestASweepLeavesOtherNodesAlone(t *testing.T) {
	ours, theirs := newNode(t, docker.Config{}), newNode(t, docker.Config{})
	mine, other := ours.start(ours.config(nil)), theirs.start(theirs.config(nil))
	if err := ours.driver.Sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-mine.Done():
	case <-time.After(patience):
		t.Error("our own container was not swept")
	}
	select {
	case <-other.Done():
		t.Error("another node's container was swept")
	default:
	}
}

func TestAContainerThatWasStartedAgainIsNotHandedOut(t *testing.T) {
	n := newNode(t, docker.Config{})
	cfg := n.config(nil)
	task := n.start(cfg)
	zero := 0
	if _, err := n.engine.api.ContainerRestart(t.Context(), n.container(cfg).ID, client.ContainerRestartOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-task.Done():
	case <-time.After(patience):
		t.Fatal("the task goes on in a container that was started again")
	}
	if exit := task.Exit(); exit.Err == nil && exit.ExitCode == 0 {
		t.Errorf("it ended with success: %+v", exit)
	}
	if _, err := n.driver.Recover(t.Context(), cfg); !errors.Is(err, driver.ErrTaskGone) {
		t.Errorf("recover: %v", err)
	}
}

func TestACommandThatTheImageDoesNotHave(t *testing.T) {
	n := newNode(t, docker.Config{})
	notes := make(chan string, 10)
	cfg := n.config(map[string]any{"command": "/no/such"})
	cfg.Emit = func(note string) { notes <- note }
	task, err := n.driver.Start(t.Context(), cfg)
	defer n.cleanUp(cfg)
	if err != nil { // an engine without an init finds out by itself
		if !strings.Contains(err.Error(), "/no/such") {
			t.Error(err)
		}
		return
	}
	select {
	case note := <-notes:
		if !strings.Contains(note, "/no/such") {
			t.Error(note)
		}
	case <-time.After(patience):
		t.Error("nobody is told")
	}
	<-task.Done()
	if exit := task.Exit(); exit.ExitCode != 127 {
		t.Errorf("%+v", exit)
	}
}

func TestAnotherRuntime(t *testing.T) {
	n := newNode(t, docker.Config{})
	if !n.engine.crun {
		t.Skip("there is no crun")
	}
	cfg := n.config(map[string]any{"runtime": "crun"})
	task, err := n.driver.Start(t.Context(), cfg)
	if err != nil && strings.Contains(err.Error(), "hybrid mode") {
		t.Skipf("crun does not run with this machine's control groups: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer n.cleanUp(cfg)
	e := n.begin(task, driver.ExecSpec{Argv: []string{"sleep", "300"}})
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if o := n.finish(e); o.fate != nil || o.Signal != 9 {
		t.Errorf("%+v", o)
	}
}

func TestATaskThatRunsOutOfMemory(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(map[string]any{"command": "sh", "args": []any{"-c", "tail /dev/zero"}}))
	select {
	case <-task.Done():
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if exit := task.Exit(); !exit.OOMKilled || exit.ExitCode != 137 || exit.Err != nil {
		t.Errorf("%+v", exit)
	}
}

func TestATerminalSeesEveryKey(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(nil))
	e := n.begin(task, driver.ExecSpec{Argv: []string{"sh", "-c", `stty raw -echo; echo ready; head -c 6`}, TTY: true})
	if _, err := io.ReadFull(e.Stdout(), make([]byte, len("ready\r\n")-1)); err != nil {
		t.Fatal(err)
	}
	keys := "\x10\x11\x1e\x1fab" // ctrl-p ctrl-q is how Docker's own client lets go of a container
	if _, err := io.WriteString(e.Stdin(), keys); err != nil {
		t.Fatal(err)
	}
	if o := n.finish(e); o.fate != nil || strings.TrimSpace(o.out) == "" || !strings.HasSuffix(o.out, keys) {
		t.Errorf("%q, %v", o.out, o.fate)
	}
}

func TestMuchOutputOfASlowReader(t *testing.T) {
	n := newNode(t, docker.Config{})
	task := n.start(n.config(nil))
	const size = 32 << 20
	e := n.begin(task, driver.ExecSpec{Argv: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}})
	_ = e.Stdin().Close()
	first := make([]byte, 10)
	if _, err := io.ReadFull(e.Stdout(), first); err != nil || !bytes.Equal(first, make([]byte, 10)) {
		t.Fatal(err)
	}
	if o := n.finish(e); o.fate != nil || len(o.out) != size-10 || o.OutputBytes != size {
		t.Errorf("%d bytes, %+v", len(o.out), o.ExecResult)
	}
}
