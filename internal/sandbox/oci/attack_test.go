//go:build linux && cgo

package oci_test

import (
	"errors"
	"fmt"
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
