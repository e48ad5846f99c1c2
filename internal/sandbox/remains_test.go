//go:build linux && cgo

package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

// tidying gives a runtime whose ended sandboxes leave their groups for so long.
func tidying(t *testing.T, after time.Duration) (r *sandbox.Runtime, dir, parent string) {
	t.Helper()
	dir, parent = t.TempDir(), fmt.Sprintf("rockpool-test-%d-%d", os.Getpid(), serial.Add(1))
	return openRuntime(t, dir, parent, func(c *sandbox.Config) { c.TidyAfter = after }), dir, parent
}

// networks counts the network namespaces that this process holds.
func networks(t *testing.T) (n int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if target, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(target, "net:") {
			n++
		}
	}
	return n
}

func destroy(t *testing.T, s *sandbox.Sandbox) {
	t.Helper()
	if err := s.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A tenant that forks as fast as it can, in sessions of its own, leaves groups behind that nothing is in, and nothing else: no process, no record, no name.
func TestWhatAnEndedSandboxLeavesIsEmpty(t *testing.T) {
	r, dir, parent := tidying(t, time.Hour)
	before := networks(t)
	s := create(t, r)
	program := `
import os
print(1, flush=True)
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass`
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"/usr/bin/python3", "-c", program}, User: "user"})
	if _, err := e.Stdout().Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	destroy(t, s)
	left := controlGroups(filepath.Join(parent, s.ID()))
	if len(left) == 0 {
		t.Fatal("the groups did not stay; nothing is shown by this test")
	}
	for _, group := range append(left, controlGroups(filepath.Join(parent, s.ID(), "*"))...) {
		text, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil || len(text) > 0 {
			t.Errorf("%s has %q, %v", group, text, err)
		}
		current, err := os.ReadFile(filepath.Join(group, "pids.current"))
		if err == nil && string(current) != "0\n" {
			t.Errorf("the kernel counts %q processes in %s", current, group)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "sandboxes", s.ID(), "state.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its record: %v", err)
	}
	if ids, err := r.List(); err != nil || len(ids) > 0 {
		t.Errorf("%q, %v", ids, err)
	}
	if err := r.Remove(t.Context(), s.ID()); err != nil {
		t.Errorf("it is removed again: %v", err)
	}
	if n := networks(t); n != before+1 {
		t.Errorf("%d networks are held, %d before", n, before)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if left := controlGroups(filepath.Join(parent, s.ID())); len(left) > 0 {
		t.Errorf("the end of the runtime left %q", left)
	}
	if n := networks(t); n != before {
		t.Errorf("%d networks are held at the end, %d before", n, before)
	}
}

// The next sandbox of that name finds nothing of the one before it.
func TestASandboxFollowsOneOfItsName(t *testing.T) {
	r, _, _ := tidying(t, time.Hour)
	const id, written = "again", 16 << 20
	for range 3 {
		s := create(t, r, func(spec *sandbox.Spec) { spec.ID = id })
		used, err := s.Usage()
		if err != nil || used.PeakMemory <= 0 || used.PeakMemory > written {
			t.Errorf("a new sandbox has used %d bytes, %v", used.PeakMemory, err)
		}
		if o := shell(t, s, "user", fmt.Sprintf("test ! -e /tmp/mine && head -c %d /dev/zero > /tmp/mine", written)); o.ExitCode != 0 {
			t.Fatalf("%+v", o)
		}
		destroy(t, s)
	}
}

// several makes sandboxes on one root.
func several(t *testing.T, r *sandbox.Runtime, n int) []*sandbox.Sandbox {
	t.Helper()
	root := hostRoot(t)
	all := make([]*sandbox.Sandbox, n)
	for i := range all {
		s, err := r.Create(t.Context(), sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: root})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = s
	}
	return all
}

// Groups stay no longer than they may, and no more of them than may stay.
func TestRemainsAreBounded(t *testing.T) {
	gone := func(t *testing.T, dir, parent string, s *sandbox.Sandbox) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			groups := controlGroups(filepath.Join(parent, s.ID()))
			_, err := os.Stat(filepath.Join(dir, "sandboxes", s.ID()))
			if len(groups) == 0 && errors.Is(err, os.ErrNotExist) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("still there: %q, %v", groups, err)
			}
		}
	}
	t.Run("in time", func(t *testing.T) {
		r, dir, parent := tidying(t, time.Second)
		s := create(t, r)
		destroy(t, s)
		if len(controlGroups(filepath.Join(parent, s.ID()))) == 0 {
			t.Error("they did not stay at all")
		}
		gone(t, dir, parent, s)
	})
	t.Run("where sandboxes are made", func(t *testing.T) {
		r, dir, parent := tidying(t, time.Hour)
		all := several(t, r, 5)
		for _, s := range all {
			destroy(t, s)
		}
		create(t, r)
		gone(t, dir, parent, all[0])
		gone(t, dir, parent, all[1])
		if len(controlGroups(filepath.Join(parent, all[2].ID()))) == 0 {
			t.Error("more were removed than two")
		}
		create(t, r)
		gone(t, dir, parent, all[3])
	})
	t.Run("in number", func(t *testing.T) {
		const most = 256
		r, dir, _ := tidying(t, time.Hour)
		all := several(t, r, most+2)
		for _, s := range all {
			destroy(t, s)
		}
		entries, err := os.ReadDir(filepath.Join(dir, "sandboxes"))
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, e := range entries {
			there[e.Name()] = true
		}
		for i, s := range all {
			if there[s.ID()] != (i >= len(all)-most) {
				t.Errorf("the remains of sandbox %d of %d are there: %v", i+1, len(all), there[s.ID()])
			}
		}
	})
}

// What cannot be removed is tried again, and so is a Destroy that failed.
func TestWhatCannotBeRemovedIsTriedAgain(t *testing.T) {
	block := func(t *testing.T, dir string, s *sandbox.Sandbox) (unblock func()) {
		t.Helper()
		place := filepath.Join(dir, "sandboxes", s.ID(), "busy")
		if err := os.Mkdir(place, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("busy", place, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	t.Run("by its runtime", func(t *testing.T) {
		r, dir, _ := tidying(t, 50*time.Millisecond)
		s := create(t, r)
		unblock := block(t, dir, s)
		destroy(t, s)
		time.AfterFunc(300*time.Millisecond, unblock)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "sandboxes", s.ID())); errors.Is(err, os.ErrNotExist) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("still there")
			}
		}
	})
	t.Run("and holds up no other", func(t *testing.T) {
		const after = 300 * time.Millisecond
		r, dir, _ := tidying(t, after)
		stuck := create(t, r)
		t.Cleanup(block(t, dir, stuck))
		destroy(t, stuck)
		time.Sleep(8 * after) // it was tried twice or three times, and waits for longer than the next one may
		s := create(t, r)
		began := time.Now()
		destroy(t, s)
		for gone := false; !gone; time.Sleep(10 * time.Millisecond) {
			_, err := os.Stat(filepath.Join(dir, "sandboxes", s.ID()))
			if gone = errors.Is(err, os.ErrNotExist); !gone && time.Since(began) > 5*after {
				t.Fatal("it still waits")
			}
		}
	})
	t.Run("by its caller", func(t *testing.T) {
		r, dir, _ := tidying(t, 0)
		s := create(t, r)
		unblock := block(t, dir, s)
		if err := s.Destroy(t.Context()); err == nil {
			t.Error("it is destroyed, though its directory cannot be removed")
		}
		unblock()
		destroy(t, s)
		if ids, err := r.List(); err != nil || len(ids) > 0 {
			t.Errorf("%q, %v", ids, err)
		}
	})
}

// A node that is killed while groups wait leaves what its next process knows as debris.
func TestRemainsOutliveNoNode(t *testing.T) {
	r, dir, parent := tidying(t, time.Hour)
	s := create(t, r)
	destroy(t, s)
	next := openRuntime(t, dir, parent)
	ids, err := next.List()
	if err != nil || !slices.Equal(ids, []string{s.ID()}) {
		t.Fatalf("%q, %v", ids, err)
	}
	if _, err := next.Attach(t.Context(), s.ID()); !errors.Is(err, sandbox.ErrUnknown) {
		t.Errorf("it is attached: %v", err)
	}
	if err := next.Remove(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if left := controlGroups(filepath.Join(parent, s.ID())); len(left) > 0 {
		t.Errorf("%q", left)
	}
}
