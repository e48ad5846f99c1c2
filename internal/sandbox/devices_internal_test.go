//go:build linux && cgo

package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The control group alone refuses what is not given: a process with all of root's power, outside of every other wall, and with nodes that exist.
func TestTheGroupAloneRefusesOtherDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	r, err := New(Config{Dir: t.TempDir(), CgroupParent: fmt.Sprintf("rockpool-devices-%d", os.Getpid()), IDBase: 0x30000000})
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range slices.Concat(r.hierarchies, r.blkio, r.devices) {
			if err := os.Remove(h.base); err != nil {
				t.Error(err)
			}
		}
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("as sandboxes are", func(t *testing.T) { groupRefuses(t, r) })
	for _, m := range parseCgroupMounts(string(mounts)) {
		// A hybrid's v2, of which sandboxes make no use there, can hold a process as that of a machine with nothing else does.
		if _, v2, _ := r.deviceGroup(""); m.unified && !v2 {
			t.Run("hybrid", func(t *testing.T) {
				h := hierarchy{unified: true, mount: m, base: filepath.Join(m.point, r.cfg.CgroupParent)}
				if err := os.Mkdir(h.base, 0o755); err != nil {
					t.Skipf("no group of v2 can be made: %v", err)
				}
				defer func() {
					if err := os.Remove(h.base); err != nil {
						t.Error(err)
					}
				}()
				groupRefuses(t, &Runtime{cfg: r.cfg, hierarchies: []hierarchy{h}})
			})
		}
	}
}

func groupRefuses(t *testing.T, r *Runtime) {
	if ok, why := r.deviceControl(); !ok {
		t.Skip(why)
	}
	dir := t.TempDir()
	node := func(name string, minor uint32) string {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			t.Skipf("no device node can be made: %v", err)
		}
		return path
	}
	// The kernel's log stands in for a device, once given and once not; memory and ports are nobody's.
	given, denied := node("given", 11), node("denied", 11)
	null := node("harmless", 3)
	for _, c := range []struct {
		id     string
		device Device
		want   string
	}{
		{"has", Device{Path: "/dev/gpu", Major: 1, Minor: 11, Access: "r"}, "read=0 write=1 null=0 port=1 block=1 made=0 other=1"},
		{"writes", Device{Path: "/dev/gpu", Major: 1, Minor: 11, Access: "w"}, "read=1 write=0 null=0 port=1 block=1 made=0 other=1"},
		{"has-another", Device{Path: "/dev/gpu", Major: 1, Minor: 9, Access: "rw"}, "read=1 write=1 null=0 port=1 block=1 made=1 other=1"},
		{"has-a-block-device", Device{Path: "/dev/gpu", Major: 1, Minor: 11, Block: true, Access: "rw"}, "read=1 write=1 null=0 port=1 block=0 made=1 other=1"},
	} {
		spec := Spec{ID: c.id, Devices: []Device{c.device}}
		g := r.group(c.id)
		if err := g.make(); err != nil {
			t.Fatal(err)
		}
		join, err := r.allowDevices(spec)
		if err != nil {
			t.Fatal(err)
		}
		more, err := g.join()
		if err != nil {
			t.Fatal(err)
		}
		files := append(join, more...)
		script := `for fd in $(seq 3 ` + fmt.Sprint(2+len(files)) + `); do echo 0 >&$fd; done
			try() { "${@:2}" >/dev/null 2>&1; echo -n "$1=$? "; }
			try read bash -c '(: < "$0")' "$1"; try write bash -c '(: > "$0")' "$2"; try null bash -c '(: > "$0")' "$3"
			try port mknod "$4/port" c 1 4; try block mknod "$4/block" b 1 11; try made mknod "$4/made" c 1 11; try other mknod "$4/other" b 7 0; rm -f "$4"/{port,block,made,other}`
		cmd := exec.Command("bash", "-c", script, "x", given, denied, null, dir)
		cmd.ExtraFiles = files
		out, err := cmd.CombinedOutput()
		closeAll(files)
		if err != nil || strings.TrimSpace(string(out)) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.id, out, err, c.want)
		}
		for _, g := range []group{g, r.devicesGroup(c.id)} {
			if err := g.remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}
