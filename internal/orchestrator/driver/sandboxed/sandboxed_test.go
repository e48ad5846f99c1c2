package sandboxed_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// fakeRuntime keeps sandboxes in memory. What runs inside are the programs of the mock driver.
type fakeRuntime struct {
	machine *mock.Driver
	deaf    bool // programs take no notice of signals

	mu    sync.Mutex
	specs map[string]sandbox.Spec
	execs []sandbox.ExecSpec
	asked []image.Options
}

func newFake() *fakeRuntime {
	return &fakeRuntime{machine: mock.New(), specs: map[string]sandbox.Spec{}}
}

func (r *fakeRuntime) Create(ctx context.Context, spec sandbox.Spec) (sandboxed.Sandbox, error) {
	r.mu.Lock()
	r.specs[spec.ID] = spec
	r.mu.Unlock()
	t, err := r.machine.Start(ctx, r.config(spec.ID))
	if err != nil {
		return nil, err
	}
	return &fakeSandbox{runtime: r, id: spec.ID, task: t}, nil
}

func (r *fakeRuntime) config(id string) driver.TaskConfig {
	return driver.TaskConfig{ID: id, Task: &model.Task{Config: map[string]any{}}}
}

func (r *fakeRuntime) Attach(ctx context.Context, id string) (sandboxed.Sandbox, error) {
	t, err := r.machine.Recover(ctx, r.config(id))
	if err != nil {
		return nil, err
	}
	return &fakeSandbox{runtime: r, id: id, task: t}, nil
}

func (r *fakeRuntime) List() ([]string, error)                     { return r.machine.Tasks(), nil }
func (r *fakeRuntime) Remove(ctx context.Context, id string) error { return r.machine.Cleanup(ctx, id) }
func (r *fakeRuntime) Fences() []sandbox.Fence {
	return []sandbox.Fence{{Name: "seccomp", InForce: true}, {Name: "network", InForce: false}, {Name: "cpu.smt", Note: true}}
}

func (r *fakeRuntime) Acquire(_ context.Context, ref string, o image.Options) (*image.Image, error) {
	r.mu.Lock()
	r.asked = append(r.asked, o)
	r.mu.Unlock()
	if ref == "solaris" {
		return nil, fault.New(fault.Invalid, "image solaris: it is not made for this node")
	}
	return &image.Image{Root: sandbox.Root{Lower: []string{"/images/" + ref}, WorkDir: "/workspace"}}, nil
}

type fakeSandbox struct {
	runtime *fakeRuntime
	id      string
	task    driver.Task
}

func (s *fakeSandbox) Exec(ctx context.Context, spec sandbox.ExecSpec) (sandboxed.Execution, error) {
	s.runtime.mu.Lock()
	s.runtime.execs = append(s.runtime.execs, spec)
	s.runtime.mu.Unlock()
	e, err := s.task.Exec(ctx, driver.ExecSpec{ID: spec.ID, Argv: spec.Argv, TTY: spec.TTY, Width: spec.Width, Height: spec.Height,
		SplitStderr: !spec.MergeStderr})
	if err != nil {
		return nil, err
	}
	return fakeExecution{e, s.runtime.deaf}, nil
}

func (s *fakeSandbox) Resume(context.Context) (sandboxed.Execution, error) {
	return nil, sandbox.ErrNotKept
}

func (s *fakeSandbox) Done() <-chan struct{}         { return s.task.Done() }
func (s *fakeSandbox) Exit() sandbox.Exit            { return sandbox.Exit{Removed: true} }
func (s *fakeSandbox) Usage() (sandbox.Usage, error) { return sandbox.Usage{PIDs: 1}, nil }
func (s *fakeSandbox) Destroy(ctx context.Context) error {
	return s.runtime.machine.Cleanup(ctx, s.id)
}
func (s *fakeSandbox) Files() driver.Files { return passwd{} }

type fakeExecution struct {
	driver.Execution
	deaf bool
}

func (e fakeExecution) Signal(n int) error {
	if e.deaf {
		return nil
	}
	return e.Execution.Signal(n)
}

func (e fakeExecution) Result() (sandbox.Result, error) {
	r, err := e.Execution.Result()
	return sandbox.Result{ExitCode: r.ExitCode, Signal: r.Signal, WallTime: r.WallTime}, err
}

// passwd is a file system with one file.
type passwd struct{}

func (passwd) Apply(_ context.Context, _ []string, archive io.Reader) error {
	for r := tar.NewReader(archive); ; {
		switch h, err := r.Next(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case h.Typeflag != tar.TypeDir: // it takes the directories that every task has
			return driver.ErrNotSupported
		}
	}
}
func (passwd) List(context.Context, string, bool, string) iter.Seq2[driver.FileInfo, error] {
	return func(yield func(driver.FileInfo, error) bool) { yield(driver.FileInfo{}, driver.ErrNotFound) }
}
func (passwd) Open(_ context.Context, path, _ string) (io.ReadCloser, driver.FileInfo, error) {
	if path != "/etc/passwd" {
		return nil, driver.FileInfo{}, driver.ErrNotFound
	}
	return io.NopCloser(strings.NewReader("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/srv/user:/bin/sh\nbroken\n")), driver.FileInfo{}, nil
}

func docker(r *fakeRuntime) driver.Driver {
	return sandboxed.New(sandboxed.Config{Runtime: r, Images: r, CoreMHz: 2000}, sandboxed.Name, sandboxed.NameDocker)[1]
}

func TestConformanceOnAFakeRuntime(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newFake()
	drivertest.Run(t, drivertest.Subject{
		New:     func(*testing.T) driver.Driver { return docker(r) },
		Forever: map[string]any{"image": "python", "command": "sleep", "args": []any{"infinity"}},
		Exits:   map[string]any{"image": "python", "command": "exit", "args": []any{"3"}},
		Wrong:   map[string]any{"image": "python", "command": "x", "privileged": true},
		Names:   "privileged",
		Cat:     []string{"cat"},
		Exit:    func(code int) []string { return []string{"exit", strconv.Itoa(code)} },
		Both:    func(out, err string) []string { return []string{"both", out, err} },
		Sleep:   []string{"sleep", "5m"},
		Size:    []string{"size"},
	})
}

func TestConfigurationIsHonouredOrRefusedByName(t *testing.T) {
	d := docker(newFake())
	ok := map[string]any{"image": "python", "command": "sleep", "args": []any{"infinity"}, "network_mode": "none", "force_pull": true,
		"memory_hard_limit": 512.0, "work_dir": "/work", "pids_limit": 100.0, "cpu_hard_limit": true, "labels": map[string]any{"a": "b"},
		"ulimit": []any{map[string]any{"nofile": "1024:2048", "fsize": "1000"}}}
	if err := d.Validate(&model.Task{Config: ok}); err != nil {
		t.Fatal(err)
	}
	for key, v := range map[string]any{"network_mode": "host", "entrypoint": []any{"sh"}, "runtime": "runsc", "privileged": true,
		"colour": "red", "pids_limit": -1.0, "work_dir": "relative", "image": 3.0, "memory_hard_limit": "much", "command": "",
		"args": "one", "io_bytes_limit": 0, "io_ops_limit": "few", "ulimit": map[string]any{"core": "0"}, "force_pull": "perhaps"} {
		t.Run(key, func(t *testing.T) {
			c := map[string]any{"image": "python", "command": "true"}
			c[key] = v
			err := d.Validate(&model.Task{Config: c})
			if !fault.Is(err, fault.Invalid) || !strings.Contains(fault.Public(err), strconv.Quote(key)) {
				t.Errorf("%v", err)
			}
		})
	}
	for _, c := range []map[string]any{{"command": "true"}, {"image": "python"}} {
		if err := d.Validate(&model.Task{Config: c}); err == nil {
			t.Errorf("%v was taken", c)
		}
	}
}

// started starts a task and gives what the runtime was asked for.
func started(t *testing.T, r *fakeRuntime, c map[string]any) (driver.Task, sandbox.Spec) {
	t.Helper()
	d := docker(r)
	cfg := driver.TaskConfig{ID: ident.New() + ".task.1", Task: &model.Task{Name: "task", Config: c},
		Resources: model.AllocatedTask{CPU: 500, MemoryMB: 100, MemoryMaxMB: 200}, DiskMB: 30,
		Env: map[string]string{"OWN": "1", "NOMAD_ALLOC_ID": "a"}}
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Cleanup(context.Background(), cfg.ID) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.specs {
		if !ident.ValidName(s.ID) {
			t.Errorf("sandbox id %q", s.ID)
		}
		s.ID = ""
		return task, s
	}
	t.Fatal("no sandbox was made")
	return nil, sandbox.Spec{}
}

func TestLimitsOfTheSandbox(t *testing.T) {
	_, got := started(t, newFake(), map[string]any{"image": "python", "command": "sleep", "args": []any{"infinity"}})
	want := sandbox.Spec{Root: sandbox.Root{Lower: []string{"/images/python"}, WorkDir: "/workspace"},
		Limits: sandbox.Limits{MemoryBytes: 200 << 20, CPUShares: 500, DiskBytes: 512 << 20}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	_, got = started(t, newFake(), map[string]any{"image": "python", "command": "sleep", "args": []any{"infinity"}, "work_dir": "/w",
		"memory_hard_limit": 300.0, "pids_limit": 10, "cpu_hard_limit": true, "ulimit": map[string]any{"nofile": 64, "fsize": "10:20"}, "io_bytes_limit": 1 << 20, "io_ops_limit": "50"})
	want.Root.WorkDir = "/w"
	want.Limits = sandbox.Limits{MemoryBytes: 300 << 20, CPUShares: 500, CPUQuota: 0.25, PIDs: 10, DiskBytes: 512 << 20, OpenFiles: 64, FileSizeBytes: 20,
		IOBytes: 1 << 20, IOPS: 50}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironmentOfExecutions(t *testing.T) {
	r := newFake()
	task, _ := started(t, r, map[string]any{"image": "python", "command": "sleep", "args": []any{"5m"}})
	for _, user := range []string{"", "user", "1000", "ghost"} {
		if _, err := task.Exec(t.Context(), driver.ExecSpec{ID: "x", Argv: []string{"echo"}, User: user, Env: []string{"MORE=2"}}); err != nil {
			t.Fatal(err)
		}
	}
	want := [][]string{
		{"HOME=/root", "USER=root", "LOGNAME=root", "OWN=1", "MORE=2"},
		{"HOME=/srv/user", "USER=user", "LOGNAME=user", "OWN=1", "MORE=2"},
		{"HOME=/srv/user", "USER=user", "LOGNAME=user", "OWN=1", "MORE=2"},
		{"HOME=/home/ghost", "USER=ghost", "LOGNAME=ghost", "OWN=1", "MORE=2"},
	}
	var got [][]string
	for _, e := range r.execs[1:] {
		got = append(got, e.Env)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if main := strings.Join(r.execs[0].Env, " "); !strings.Contains(main, "NOMAD_ALLOC_ID=a") {
		t.Errorf("the main process sees %s", main)
	}
}

func TestACommandThatOnlyWaitsIsNotStarted(t *testing.T) {
	r := newFake()
	task, _ := started(t, r, map[string]any{"image": "python", "command": "/bin/sleep", "args": []any{"infinity"}})
	if len(r.execs) != 0 {
		t.Errorf("started %v", r.execs)
	}
	if err := task.Stop(t.Context(), 2, 0); err != nil {
		t.Fatal(err)
	}
	<-task.Done()
	if e := task.Exit(); e.ExitCode != 130 || e.Signal != 2 {
		t.Errorf("exit %+v", e)
	}
}

// A sandbox whose files stay within reach, as they are until it is destroyed, is out of reach all the same once its task stops.
func TestATaskThatStopsIsOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFake()
		r.deaf = true
		task, _ := started(t, r, map[string]any{"image": "python", "command": "sleep", "args": []any{"1h"}})
		files := task.Files()
		if _, _, err := files.Open(t.Context(), "/etc/passwd", ""); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		var stopping sync.WaitGroup
		stopping.Go(func() {
			if err := task.Stop(t.Context(), int(syscall.SIGTERM), time.Minute); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if _, _, err := files.Open(t.Context(), "/etc/passwd", ""); !errors.Is(err, driver.ErrTaskGone) {
			t.Errorf("open: %v", err)
		}
		if _, err := task.Exec(t.Context(), driver.ExecSpec{ID: "x", Argv: []string{"cat"}}); !errors.Is(err, driver.ErrTaskGone) {
			t.Errorf("exec: %v", err)
		}
		if stopping.Wait(); time.Since(begun) != time.Minute {
			t.Errorf("it was asked after the command had ended, after %s", time.Since(begun))
		}
	})
}

func TestWhatSandboxesDoNotOfferIsRefused(t *testing.T) {
	d := docker(newFake())
	c := map[string]any{"image": "python", "command": "cat"}
	for name, cfg := range map[string]driver.TaskConfig{
		"network": {Networks: []model.Network{{Mode: "host"}}},
		"image":   {Task: &model.Task{Config: map[string]any{"image": "solaris", "command": "cat"}}},
		"devices": {Resources: model.AllocatedTask{Devices: []model.AllocatedDevice{{Type: "gpu"}}}},
	} {
		cfg.ID = "x"
		if cfg.Task == nil {
			cfg.Task = &model.Task{Config: c}
		}
		if _, err := d.Start(t.Context(), cfg); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnImageIsAskedForAsTheJobSays(t *testing.T) {
	r := newFake()
	d := docker(r)
	const password = "s3cret-p4ss"
	c := map[string]any{"image": "python:3", "command": "cat", "force_pull": "true",
		"auth": []any{map[string]any{"username": "u", "password": password, "server_address": "x"}}}
	cfg := driver.TaskConfig{ID: "x", Task: &model.Task{Config: c}}
	if err := d.(driver.Preparer).Prepare(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Cleanup(context.Background(), cfg.ID) })
	want := &image.Credentials{Username: "u", Password: password}
	if len(r.asked) != 2 || !r.asked[0].Force || r.asked[1].Force || *r.asked[0].Credentials != *want || *r.asked[1].Credentials != *want {
		t.Errorf("asked %+v", r.asked)
	}
	for name, auth := range map[string]any{"no block": password, "a number": map[string]any{"username": "u", "password": 5}, "another key": map[string]any{"token": password}} {
		c["auth"] = auth
		if err := d.Validate(&model.Task{Config: c}); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v", name, err)
		}
	}
	delete(c, "auth")
	for _, ref := range []string{"file:///etc/passwd", "UPPER/case", "a b", "dir:relative"} {
		c["image"] = ref
		if err := d.Validate(&model.Task{Config: c}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"image"`) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestFencesAreAttributes(t *testing.T) {
	info := docker(newFake()).Fingerprint(t.Context())
	if info.Attributes["sandbox.fence.seccomp"] != "true" || info.Attributes["sandbox.fence.network"] != "false" ||
		!strings.Contains(info.HealthDescription, "network") || strings.Contains(info.HealthDescription, "smt") {
		t.Errorf("%+v", info)
	}
}

// A scheduler goes by these: what is placed here must not fail for what the node has known all along.
func TestRuntimesTellWhichOfThemGiveDevices(t *testing.T) {
	r := newFake()
	d := sandboxed.New(sandboxed.Config{Runtime: r, Images: r, Classes: map[string]sandboxed.Class{"crun": {Runtime: r}, "runsc": {Runtime: r, OwnKernel: true}}}, sandboxed.NameDocker)[0]
	if a := d.Fingerprint(t.Context()).Attributes; a["runtimes"] != "crun,runsc" || a["runtimes.devices"] != "crun" {
		t.Errorf("got %q, of which %q give devices", a["runtimes"], a["runtimes.devices"])
	}
}

func TestTheTableHasTheRowsOfEachRuntime(t *testing.T) {
	r := newFake()
	d := sandboxed.New(sandboxed.Config{Runtime: r, Images: r, Classes: map[string]sandboxed.Class{"crun": {Runtime: r}, "runsc": {Runtime: r}}}, sandboxed.Name, sandboxed.NameDocker)
	var got []string
	for _, f := range driver.Fences(slices.Values(d)) {
		got = append(got, fmt.Sprintf("%s/%s %t", f.Wall, f.Name, f.InForce))
	}
	want := []string{
		"/seccomp true", "/network false", "/cpu.smt false",
		"OCI runtime crun/crun.seccomp true", "OCI runtime crun/crun.network false", "OCI runtime crun/crun.cpu.smt false",
		"OCI runtime runsc/runsc.seccomp true", "OCI runtime runsc/runsc.network false", "OCI runtime runsc/runsc.cpu.smt false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
