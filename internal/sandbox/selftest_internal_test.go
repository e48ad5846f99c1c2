//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testRuntime is one with groups and a range of ids of its own.
func testRuntime(t *testing.T, edit ...func(*Config)) *Runtime {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	parent := fmt.Sprintf("rockpool-internal-%d", os.Getpid())
	cfg := Config{Dir: t.TempDir(), CgroupParent: parent, IDBase: 0x34000000}
	for _, e := range edit {
		e(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range slices.Concat(r.hierarchies, r.blkio, r.devices) {
			if err := os.Remove(h.base); err != nil {
				t.Errorf("control group left: %v", err)
			}
		}
	})
	return r
}

// emptyRoot has no program at all: the self-test needs none.
func emptyRoot(t *testing.T) Root {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return Root{Lower: []string{dir}}
}

func TestSelfTest(t *testing.T) {
	r := testRuntime(t)
	if err := r.SelfTest(t.Context(), emptyRoot(t)); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, f := range r.Fences() {
		if strings.Contains(f.Detail, "; tried: ") {
			tried++
			if !f.InForce {
				t.Errorf("%+v", f)
			}
		}
		if f.Wall == "" || f.Name == "" || f.Detail == "" {
			t.Errorf("an empty column: %+v", f)
		}
	}
	if tried < 15 {
		t.Errorf("%d fences were tried", tried)
	}
	if left, err := r.List(); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if files, err := filepath.Glob(filepath.Join(r.cfg.Dir, "self-test-*")); err != nil || len(files) > 0 {
		t.Errorf("left: %v %v", files, err)
	}
}

// As an unprivileged user, which most programs run as, the same attempts end no better.
func TestSelfTestAsAnotherUser(t *testing.T) {
	found, err := testRuntime(t).tryOut(t.Context(), emptyRoot(t), "1000")
	if err != nil {
		t.Fatal(err)
	}
	for fence, o := range found {
		if len(o.through) > 0 {
			t.Errorf("%s: %s", fence, o)
		}
	}
}

// It takes a node's start no more than a tenth of a second; on an emulated machine, no more than some sandboxes.
func TestSelfTestIsQuick(t *testing.T) {
	r, root := testRuntime(t), emptyRoot(t)
	best := func(f func() error) time.Duration {
		least := time.Hour
		for range 5 {
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			least = min(least, time.Since(began))
		}
		return least
	}
	plain := best(func() error {
		s, err := r.Create(t.Context(), Spec{ID: "plain", Root: root})
		if err != nil {
			return err
		}
		return s.Destroy(t.Context())
	})
	if took := best(func() error { return r.SelfTest(t.Context(), root) }); took > max(100*time.Millisecond, 10*plain) {
		t.Errorf("it took %v, a sandbox alone %v", took, plain)
	}
}

// allowAll is a filter that lets everything through.
func allowAll() []byte {
	var b body
	i := ret(retAllow)
	b = native.AppendUint16(b, i.Code)
	b = append(b, i.Jt, i.Jf)
	b.u32(i.K)
	return b
}

// A wall that does not stand is noticed, whatever was meant to be there.
func TestSelfTestNoticesAMissingWall(t *testing.T) {
	for _, c := range []struct {
		name, fence string
		weaken      func(*Runtime)
	}{
		{"no system call filter", "seccomp", func(r *Runtime) { r.filter = allowAll() }},
		{"no limit of processes", "cgroup.pids", func(r *Runtime) {
			for i := range r.hierarchies {
				var kept []string
				for _, controller := range r.hierarchies[i].controllers {
					if controller != "pids" {
						kept = append(kept, controller)
					}
				}
				r.hierarchies[i].controllers = kept
			}
		}},
	} {
		for _, allowed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, allowed %v", c.name, allowed), func(t *testing.T) {
				r := testRuntime(t, func(cfg *Config) { cfg.AllowUnconfined = allowed })
				c.weaken(r)
				err := r.SelfTest(t.Context(), emptyRoot(t))
				if (err == nil) != allowed || err != nil && !strings.Contains(err.Error(), c.fence+": ") {
					t.Errorf("got %v", err)
				}
				for _, f := range r.Fences() {
					if f.Name == c.fence && (f.InForce || !strings.Contains(f.Detail, "NOT STOPPED") && c.fence == "seccomp") {
						t.Errorf("%+v", f)
					}
				}
			})
		}
	}
}

func TestTrialsAreJudgedStrictly(t *testing.T) {
	report := func(edit func(i int, name *string, errno *syscall.Errno)) []byte {
		var all []byte
		for i, a := range attempts {
			name, errno := a.name, syscall.Errno(0)
			if len(a.refused) > 0 {
				errno = a.refused[0]
			}
			edit(i, &name, &errno)
			b := make([]byte, trialSize)
			copy(b, name)
			native.PutUint32(b[trialSize-4:], uint32(errno))
			all = append(all, b...)
		}
		return all
	}
	for i, a := range attempts {
		for _, errno := range []syscall.Errno{0, unix.EFAULT, unix.EBADF} {
			found, err := judgeTrials(report(func(j int, _ *string, e *syscall.Errno) {
				if i == j {
					*e = errno
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			if through := len(found[a.fence].through) > 0; through != (len(a.refused) > 0) {
				t.Errorf("%s answered with %d: got through is %v", a.name, errno, through)
			}
		}
	}
	if _, err := judgeTrials(report(func(int, *string, *syscall.Errno) {})[trialSize:]); err == nil {
		t.Error("an attempt that was not made is passed over")
	}
	if _, err := judgeTrials(report(func(i int, name *string, _ *syscall.Errno) { *name = "other" })); err == nil {
		t.Error("an unknown attempt is passed over")
	}
}

func TestIOIsBounded(t *testing.T) {
	r := testRuntime(t)
	if ok, detail := r.ioControl(); !ok {
		t.Skip(detail)
	}
	root := emptyRoot(t)
	devices, err := blockDevices(root)
	if errors.Is(err, ErrInvalid) || len(devices) == 0 {
		t.Skipf("no disk below the test's files: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Create(t.Context(), Spec{ID: "io", Root: root, Limits: Limits{IOBytes: 1 << 20, IOPS: 200}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(r.ioGroup("io").path(r.ioGroup("io").hierarchies[0])); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its group is left: %v", err)
		}
	}()
	g := r.ioGroup("io")
	bytes, v1 := g.file("blkio", "blkio.throttle.read_bps_device", "")
	if !v1 {
		bytes, _ = s.group.file("io", "", "io.max")
	}
	text, err := os.ReadFile(bytes)
	if err != nil || !strings.Contains(string(text), devices[0]) || !strings.Contains(string(text), "1048576") {
		t.Errorf("%s: %q %v", bytes, text, err)
	}
	pids, err := g.pids()
	if err != nil || len(pids) == 0 {
		t.Errorf("nothing runs in the group: %v %v", pids, err)
	}
}

func TestIOLimitsAsV2WantsThem(t *testing.T) {
	for want, l := range map[string]Limits{
		"8:0 rbps=5 wbps=5":                 {IOBytes: 5},
		"8:0 riops=7 wiops=7":               {IOPS: 7},
		"8:0 rbps=5 wbps=5 riops=7 wiops=7": {IOBytes: 5, IOPS: 7},
	} {
		if got := ioMax("8:0", l); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
