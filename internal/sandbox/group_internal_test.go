//go:build linux && cgo

package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCgroupMountsAreRecognised(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/abc /sys/fs/cgroup/memory\040x rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
`
	got := fmt.Sprint(parseCgroupMounts(hybrid))
	want := fmt.Sprint([]cgroupMount{
		{root: "/", point: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
		{root: "/docker/abc", point: "/sys/fs/cgroup/memory x", controllers: []string{"memory"}},
		{root: "/", point: "/sys/fs/cgroup/devices", controllers: []string{"devices"}},
		{unified: true, root: "/", point: "/sys/fs/cgroup/unified", options: []string{"rw"}},
	})
	if got != want {
		t.Errorf("%s", got)
	}
	own := parseOwnGroups("4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/user.slice/x\n")
	if own["memory"] != "/a/b" || own["cpu"] != "/c" || own["cpuacct"] != "/c" || own[""] != "/user.slice/x" {
		t.Error(own)
	}
}

// On a machine of control groups v2 the files have other names; a directory of plain files stands for one.
func TestUnifiedCounters(t *testing.T) {
	base := t.TempDir()
	for name, text := range map[string]string{
		"memory.events": "low 0\noom 1\noom_kill 2\n", "memory.peak": "4096\n", "memory.current": "1024\n", "cpu.stat": "usage_usec 1500\nuser_usec 1\n",
		"pids.current": "3\n", "memory.max": "", "memory.swap.max": "", "pids.max": "", "cpu.weight": "", "cpu.max": "", "cgroup.subtree_control": "",
	} {
		if err := os.WriteFile(filepath.Join(base, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := group{hierarchies: []hierarchy{{unified: true, controllers: []string{"memory", "pids", "cpu"}, base: base}}, rel: ""}
	if got := g.counters(); got != (counters{oomKills: 2, memory: 1024, peakMemory: 4096, cpu: 1500 * time.Microsecond, pids: 3}) {
		t.Errorf("%+v", got)
	}
	if err := g.limit(Limits{MemoryBytes: 1 << 20, PIDs: 10, CPUShares: 1024, CPUQuota: 0.5}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"memory.max": "1048576", "memory.swap.max": "0", "pids.max": "11", "cpu.weight": "39", "cpu.max": "50000 100000", "cgroup.subtree_control": "+memory +pids +cpu",
	} {
		if got, _ := os.ReadFile(filepath.Join(base, name)); string(got) != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A machine with v1 alone has no cgroup.kill: nothing may survive there either.
func TestKillWithoutUnifiedHierarchy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	parent := fmt.Sprintf("rockpool-test-v1-%d", os.Getpid())
	r, err := New(Config{Dir: t.TempDir(), CgroupParent: parent, IDBase: 0x38000000})
	if err != nil {
		t.Skip(err)
	}
	defer func() {
		_ = r.Close()
		v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent + "/cgroup.procs")
		v2, _ := filepath.Glob("/sys/fs/cgroup/" + parent + "/cgroup.procs")
		for _, file := range append(v1, v2...) {
			g := filepath.Dir(file)
			if err := os.Remove(g); err != nil {
				t.Error(err)
			}
		}
	}()
	r.hierarchies = slices.DeleteFunc(r.hierarchies, func(h hierarchy) bool { return h.unified })
	if len(r.hierarchies) == 0 {
		t.Skip("no v1 control groups on this machine")
	}
	root := Root{Lower: []string{t.TempDir()}, Env: []string{"PATH=/usr/bin"}}
	for _, name := range []string{"bin", "lib", "lib64", "usr", "etc", "sbin"} {
		root.Binds = append(root.Binds, Bind{Source: "/" + name, Target: "/" + name})
	}
	s, err := r.Create(t.Context(), Spec{ID: "v1", Root: root, Limits: Limits{PIDs: 60}})
	if err != nil {
		t.Fatal(err)
	}
	// When the bomb has reached the limit the first shell has nothing more to fork, which would fail.
	e, err := s.Exec(t.Context(), ExecSpec{ID: "bomb", Argv: []string{"bash", "-c", "f() { f & f & sleep 100; }; setsid sleep 1000 & f & read; exit 6"}, MergeStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(e.Stdout())
	for lines.Scan() && !strings.Contains(lines.Text(), "fork") {
	}
	if err := e.Stdin().Close(); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, e.Stdout())
	<-e.Done()
	if result, err := e.Result(); err != nil || result.ExitCode != 6 {
		t.Errorf("%+v %v", result, err)
	}
	// What has ended counts until process 1 has reaped it.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		u, err := s.Usage()
		if err == nil && u.PIDs == 1 {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Errorf("%+v %v", u, err)
			break
		}
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// The group that a node was started in cannot bound its children before everything in it has moved to a leaf, what forks meanwhile too.
func TestDelegationEmptiesTheGroup(t *testing.T) {
	const root = "/sys/fs/cgroup"
	if controllers, err := os.ReadFile(root + "/cgroup.controllers"); os.Geteuid() != 0 || err != nil || !strings.Contains(string(controllers), "memory") {
		t.Skip("it needs root and control groups v2 alone")
	}
	if _, err := delegate(root); err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("%s/rockpool-test-own-%d", root, os.Getpid())
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	g := group{hierarchies: []hierarchy{{unified: true, base: own}}, rel: ""}
	cmd := exec.Command("bash", "-c", "echo 0 > "+own+"/cgroup.procs && echo ready && while :; do (:); done")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if found, err := g.kill(t.Context()); err != nil || !found {
			t.Error(found, err)
		}
		_ = cmd.Wait()
		if err := g.remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	controllers, err := delegate(own)
	if err != nil || !slices.Contains(controllers, "memory") || !slices.Contains(controllers, "pids") {
		t.Errorf("%v %v", controllers, err)
	}
	enabled, _ := os.ReadFile(own + "/cgroup.subtree_control")
	left, _ := os.ReadFile(own + "/cgroup.procs")
	if !strings.Contains(string(enabled), "memory") || len(left) > 0 {
		t.Errorf("enabled %q, left %q", enabled, left)
	}
}

// Between the end of an execution and its being known, its group may already be the next one's: a kill, or a limit that is passed, comes too late then.
func TestWhatHasEndedIsNotKilled(t *testing.T) {
	for _, ended := range []bool{false, true} {
		base := t.TempDir()
		if err := os.WriteFile(filepath.Join(base, "cgroup.kill"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		e := &Execution{group: group{hierarchies: []hierarchy{{unified: true, base: base}}}, bounds: bounds{time: 1}, meter: newMeter(0), over: make(chan struct{}), done: make(chan struct{})}
		if ended && !e.settle() {
			t.Error("nobody has wanted its end")
		}
		if err := e.Kill(); err != nil {
			t.Error(err)
		}
		e.enforce()
		if killed, err := os.ReadFile(filepath.Join(base, "cgroup.kill")); err != nil || (len(killed) > 0) == ended {
			t.Errorf("ended %v: %q %v", ended, killed, err)
		}
		if e.settle() {
			t.Error("its end is wanted, or over already, and it ends once more")
		}
	}
}

func TestACancelledSetUpSaysSo(t *testing.T) {
	ours, theirs := net.Pipe() // nobody reads: the context is all that ends it
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := new(Sandbox).converse(ctx, ours, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPermissionStrings(t *testing.T) {
	for mode, want := range map[uint32]string{
		0o644: "rw-r--r--", 0o1777: "rwxrwxrwt", 0o4755: "rwsr-xr-x", 0o2640: "rw-r-S---", 0o1000: "--------T", 0: strings.Repeat("-", 9),
	} {
		if got := (FileInfo{Mode: mode}).Permissions(); got != want {
			t.Errorf("%o: %s", mode, got)
		}
	}
}

func TestWithoutControllersNothingUntrustedRuns(t *testing.T) {
	memory, pids := hierarchy{controllers: []string{"memory"}, base: "/m"}, hierarchy{controllers: []string{"pids"}, base: "/p"}
	empty, whole := hierarchy{unified: true, base: "/u"}, hierarchy{unified: true, controllers: []string{"cpu", "memory", "pids"}, base: "/u"}
	disks, devices := hierarchy{controllers: []string{"blkio"}, base: "/b"}, hierarchy{controllers: []string{"devices"}, base: "/d"}
	for name, c := range map[string]struct {
		found       []hierarchy
		runs, loose bool // as it is; when the configuration allows it
	}{
		"none":                   {nil, false, false},
		"only disks":             {[]hierarchy{disks}, false, false},
		"v2 without controllers": {[]hierarchy{empty}, false, true},
		"memory alone":           {[]hierarchy{memory}, false, true},
		"pids alone":             {[]hierarchy{pids, empty}, false, true},
		"v1":                     {[]hierarchy{memory, pids}, true, true},
		"v1 with devices":        {[]hierarchy{memory, pids, devices}, true, true},
		"hybrid":                 {[]hierarchy{memory, pids, empty, disks}, true, true},
		"v2":                     {[]hierarchy{whole}, true, true},
	} {
		for allowed, want := range map[bool]bool{false: c.runs, true: c.loose} {
			r := &Runtime{cfg: Config{AllowUnconfined: allowed}}
			if lacks := r.confineWith(c.found, errors.New("why")); (lacks == "") != want || lacks != "" && !strings.Contains(lacks, "why") {
				t.Errorf("%s, allowed %v: %q", name, allowed, lacks)
			}
			for _, f := range r.Fences() {
				if f.Name == "cgroup.devices" && f.InForce != (name == "v1 with devices" || name == "v2" || name == "v2 without controllers") {
					t.Errorf("%s: %+v", name, f)
				}
				if f.Name == "cgroup.memory" && f.InForce != (name == "memory alone" || c.runs) {
					t.Errorf("%s: %+v", name, f)
				}
			}
		}
	}
}

// Where executions are moved between groups of v2, that must not wait for all processors.
func TestMovesAreFavoured(t *testing.T) {
	r := testRuntime(t)
	for _, h := range r.hierarchies {
		if !h.unified {
			continue
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range parseCgroupMounts(string(mounts)) {
			if m.unified && !slices.Contains(m.options, favourMoves) {
				t.Errorf("the mount has the options %v", m.options)
			}
			for _, option := range h.mount.options {
				if m.unified && !slices.Contains(m.options, option) {
					t.Errorf("%s was lost: %v", option, m.options)
				}
			}
		}
		return
	}
	t.Skip("programs are in groups of v1 here")
}

// There is always a group that is bounded: a kernel that has none patches itself each time one is.
func TestAGroupIsKeptBounded(t *testing.T) {
	r := testRuntime(t)
	path, ok := r.group(nameOfBounded).file("cpu", "cpu.cfs_quota_us", "cpu.max")
	if !ok {
		t.Skip("there is no control group for processors")
	}
	text, err := os.ReadFile(path)
	if quota, _, _ := strings.Cut(strings.TrimSpace(string(text)), " "); err != nil || quota != restQuota {
		t.Errorf("%q, %v", text, err)
	}
	again, err := New(r.cfg) // as after a death
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, and the runtime is closed", err)
	}
}
