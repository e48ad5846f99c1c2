//go:build linux && cgo

package oci_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

// Whoever has the id of the program inside could stop it, and with it every limit of time. The accounts are the tenant's to write.
func TestNobodyHasTheIDOfTheProgramInside(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		refused := 0
		for _, id := range []int{65533, 65534, 65535} {
			if o := shell(t, s, "root", fmt.Sprintf("echo 'user:x:%d:%d::/tmp:/bin/sh' >/etc/passwd", id, id)); o.ExitCode != 0 {
				t.Fatalf("%+v", o)
			}
			for _, name := range []string{"user", fmt.Sprint(id)} {
				e, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: fmt.Sprintf("stop-%s-%d", name, id), User: name, Dir: "/",
					Argv: []string{"/bin/sh", "-c", "kill -STOP $PPID && echo stopped; kill -KILL $PPID; exec sleep 30"}, TimeLimit: time.Second})
				if errors.Is(err, sandbox.ErrNoUser) {
					refused++
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				select {
				case <-e.Done():
				case <-time.After(10 * time.Second):
					t.Errorf("%s with the id %d outlives its limit", name, id)
					continue
				}
				if r, err := e.Result(); err != nil || r.Verdict != sandbox.VerdictTime {
					t.Errorf("%s with the id %d: %+v %v", name, id, r, err)
				}
			}
		}
		if refused != 2 { // by name and by number
			t.Errorf("%d of the users with the id of the program inside were refused", refused)
		}
	})
}

// An image that has a link where the program inside is mounted could replace it: what is mounted stays, and the link goes.
func TestAnImageCannotReplaceTheProgramInside(t *testing.T) {
	layer := t.TempDir()
	if err := os.MkdirAll(filepath.Join(layer, "opt/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/opt/x", filepath.Join(layer, ".rockpool")); err != nil {
		t.Fatal(err)
	}
	everywhere(t, func(t *testing.T, m *machine) {
		r := m.runtime(t)
		root := m.root
		root.Lower = append([]string{layer}, root.Lower...)
		s := m.createIn(t, r, func(spec *sandbox.Spec) { spec.Root = root })
		o := shell(t, s, "root", "rm -f /.rockpool; mv /.rockpool /opt/y; mkdir -p /.rockpool; cp /bin/cat /.rockpool/inside")
		if o.err != nil || o.ExitCode == 0 {
			t.Errorf("the program inside was replaced: %+v", o)
		}
		if o = shell(t, s, "root", "echo alive"); o.stdout != "alive\n" {
			t.Errorf("another program than ours was run: %+v", o)
		}
	})
}

// What a program did beyond a limit shows in its verdict also when it has ended before the node looked.
func TestASwiftEndHidesNoLimit(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		for _, c := range []struct {
			spec sandbox.ExecSpec
			want sandbox.Verdict
		}{
			{sandbox.ExecSpec{Argv: []string{"bash", "-c", "printf '%01000d' 1; exit 0"}, OutputLimit: 100}, sandbox.VerdictOutput},
			{sandbox.ExecSpec{Argv: []string{"bash", "-c", "printf '%0100d' 1; exit 0"}, OutputLimit: 100}, sandbox.VerdictExit},
			{sandbox.ExecSpec{Argv: []string{"bash", "-c", "printf '%060d' 1; printf '%060d' 1 >&2; exit 0"}, OutputLimit: 100}, sandbox.VerdictOutput},
			{sandbox.ExecSpec{Argv: []string{"bash", "-c", "printf '%060d' 1; printf '%060d' 1 >&2; kill -KILL $$"}, OutputLimit: 100}, sandbox.VerdictOutput},
			{sandbox.ExecSpec{Argv: []string{"bash", "-c", "for ((i = 0; i < 4000; i++)); do :; done; exit 0"}, CPULimit: time.Millisecond}, sandbox.VerdictCPU},
		} {
			e := begin(t, s, c.spec)
			select { // nobody reads before
			case <-e.Done():
			case <-time.After(patience):
				t.Fatalf("%q does not end", c.spec.Argv)
			}
			r, err := e.Result()
			if err != nil || r.Verdict != c.want {
				t.Errorf("%q: %+v %v", c.spec.Argv, r, err)
			}
			text, err := io.ReadAll(io.MultiReader(e.Stdout(), e.Stderr()))
			if limit := c.spec.OutputLimit; limit > 0 && (err != nil || int64(len(text)) != limit || r.OutputBytes != limit) {
				t.Errorf("%q: %d bytes, %d counted, %v", c.spec.Argv, len(text), r.OutputBytes, err)
			}
		}
		for _, spec := range []sandbox.ExecSpec{{TimeLimit: -1}, {CPULimit: -1}, {OutputLimit: -1}, {Grace: -1}} {
			spec.ID, spec.Argv = "negative", []string{"true"}
			if _, err := s.Exec(t.Context(), spec); !errors.Is(err, sandbox.ErrInvalid) {
				t.Errorf("%+v: %v", spec, err)
			}
		}
	})
}

// A program that has others work for it, and waits for each, uses their time.
func TestTimeOfEndedChildrenCounts(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "while :; do (for ((i = 0; i < 5000; i++)); do :; done); done"},
			CPULimit: 300 * time.Millisecond, TimeLimit: 15 * time.Second}), "")
		if o.err != nil || o.Verdict != sandbox.VerdictCPU {
			t.Errorf("%+v", o)
		}
	})
}
