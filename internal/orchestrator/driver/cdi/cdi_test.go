package cdi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/sandbox"
)

// write makes a directory with one specification of two devices and what they share.
func write(t *testing.T, shared, first, second string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	text := fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "containerEdits": {%s},
		"devices": [{"name": "GPU-1", "containerEdits": {"env": ["MODEL=one"]%s}}, {"name": "GPU-2", "containerEdits": {"env": ["MODEL=two"]%s}}]}`, shared, first, second)
	if err := os.WriteFile(filepath.Join(dir, "nvidia.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// library is one of this machine, under another file name.
func library(t *testing.T, name string) string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/lib/*/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"} {
		some, _ := filepath.Glob(pattern)
		found = append(found, some...)
	}
	for _, f := range found {
		data, err := os.ReadFile(f)
		path := filepath.Join(t.TempDir(), name)
		if err == nil && os.WriteFile(path, data, 0o644) == nil {
			return path
		}
	}
	t.Skip("this machine has no C library to stand in for that of a driver")
	return ""
}

const (
	one = `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/zero"}]`
	two = `, "deviceNodes": [{"path": "/dev/nvidia1", "hostPath": "/dev/full", "permissions": "r"}]`
)

func TestADeviceIsWhatItsSpecificationSays(t *testing.T) {
	lib := library(t, "libgpu.so.570.1")
	shared := fmt.Sprintf(`"env": ["NVIDIA_VISIBLE_DEVICES=void", "A=b=c"], "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3}],
		"mounts": [{"hostPath": %q, "containerPath": "/usr/lib/gpu/libgpu.so.570.1", "options": ["rw", "suid", "dev"]}],
		"hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", "update-ldcache"]}], "additionalGids": [44]`, lib)
	r := cdi.New(nil, nil, write(t, shared, one, two))
	g, err := r.Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-1"})
	if err != nil {
		t.Fatal(err)
	}
	control := sandbox.Device{Path: "/dev/nvidiactl", Source: "/dev/null", Major: 1, Minor: 3, Access: "rw"}
	first := sandbox.Device{Path: "/dev/nvidia0", Source: "/dev/zero", Major: 1, Minor: 5, Access: "rw"}
	second := sandbox.Device{Path: "/dev/nvidia1", Source: "/dev/full", Major: 1, Minor: 7, Access: "r"}
	if !slices.Equal(g.Devices, []sandbox.Device{control, first}) {
		t.Errorf("devices %+v", g.Devices)
	}
	if len(g.Binds) != 2 || g.Binds[0].Source != lib || g.Binds[0].Target != "/usr/lib/gpu/libgpu.so.570.1" || !g.Binds[0].Made || g.Binds[0].Writable {
		t.Fatalf("files %+v", g.Binds)
	}
	links := g.Binds[1].Links
	if len(links) != 3 || links["libc.so.6"] != g.Binds[0].Target || links["libgpu.so"] != g.Binds[0].Target || links["libgpu.so.570.1"] != g.Binds[0].Target {
		t.Errorf("links %v", links)
	}
	if len(g.Ignored) != 1 || !strings.Contains(g.Ignored[0], "nvidia-cdi-hook update-ldcache") {
		t.Errorf("not used %q", g.Ignored)
	}
	spec := sandbox.Spec{Root: sandbox.Root{Env: []string{"LD_LIBRARY_PATH=/opt/image", "PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all"}}}
	before := spec
	g.Apply(&spec)
	if want := []string{"LD_LIBRARY_PATH=" + g.Binds[1].Target + ":/opt/image", "PATH=/bin", "NVIDIA_VISIBLE_DEVICES=GPU-1", "A=b=c", "MODEL=one", "CUDA_DEVICE_ORDER=PCI_BUS_ID"}; !slices.Equal(spec.Root.Env, want) {
		t.Errorf("environment %q, want %q", spec.Root.Env, want)
	}
	if before.Root.Env[2] != "NVIDIA_VISIBLE_DEVICES=all" {
		t.Error("the image's own environment was changed")
	}

	g, err = r.Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-2", "nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(g.Devices, []sandbox.Device{control, second, first}) || !slices.Contains(g.Env, "NVIDIA_VISIBLE_DEVICES=GPU-2,GPU-1") || !slices.Contains(g.Env, "MODEL=one") {
		t.Errorf("two devices: %+v", g)
	}
	if g, err := r.Resolve(t.Context(), nil); err != nil || len(g.Devices)+len(g.Binds)+len(g.Env) > 0 {
		t.Errorf("none: %+v, %v", g, err)
	}
}

// A socket of a service on the node, such as that of a server of MPS, leads out of a sandbox and to its neighbours; so may a file system of another kind.
func TestSocketsAndFileSystemsAreNotShown(t *testing.T) {
	dir := t.TempDir()
	socket, pipe := filepath.Join(dir, "control"), filepath.Join(dir, "pipe")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := syscall.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	// Of the directories one is where services meet, one has a socket in it far below, and one has files alone.
	own, err := os.MkdirTemp(".", "driver")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(own) })
	if own, err = filepath.Abs(own); err != nil {
		t.Fatal(err)
	}
	busy, quiet, way := filepath.Join(own, "busy"), filepath.Join(own, "quiet"), filepath.Join(own, "way")
	if err := errors.Join(os.MkdirAll(filepath.Join(busy, "a/b"), 0o755), os.Mkdir(quiet, 0o755), os.WriteFile(filepath.Join(quiet, "gsp.bin"), nil, 0o644),
		syscall.Mkfifo(filepath.Join(busy, "a/b/pipe"), 0o666), os.Symlink(t.TempDir(), way)); err != nil {
		t.Fatal(err)
	}
	shared := fmt.Sprintf(`"mounts": [{"hostPath": %q, "containerPath": "/tmp/nvidia-mps/control"}, {"hostPath": %q, "containerPath": "/tmp/nvidia-mps/pipe"},
		{"hostPath": "proc", "containerPath": "/proc/driver", "type": "proc"}, {"hostPath": "/dev/zero", "containerPath": "/run/zero", "options": ["bind"]},
		{"hostPath": %q, "containerPath": "/tmp/nvidia-mps"}, {"hostPath": %q, "containerPath": "/opt/busy"}, {"hostPath": %q, "containerPath": "/opt/way"},
		{"hostPath": %q, "containerPath": "/lib/firmware/gpu"}]`, socket, pipe, dir, busy, way, quiet)
	g, err := cdi.New(nil, nil, write(t, shared, one, two)).Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Binds) != 1 || g.Binds[0].Source != quiet || len(g.Ignored) != 7 {
		t.Errorf("shown are %+v, not used %q", g.Binds, g.Ignored)
	}
}

func TestAWrongSpecificationIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ shared, first, want string }{
		"memory":               {``, `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/mem"}]`, "/dev/mem"},
		"not a device":         {``, `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/etc/passwd"}]`, "no device node"},
		"not there":            {``, `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/no-such"}]`, "not there"},
		"another device":       {``, `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/zero", "type": "c", "major": 1, "minor": 7}]`, "1:5"},
		"another kind":         {``, `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/zero", "type": "b", "major": 1, "minor": 5}]`, "1:5"},
		"a node outside":       {``, `, "deviceNodes": [{"path": "/etc/nvidia0", "hostPath": "/dev/zero"}]`, "below /dev"},
		"a node with dots":     {``, `, "deviceNodes": [{"path": "/dev/../etc/nvidia0", "hostPath": "/dev/zero"}]`, "below /dev"},
		"a source with dots":   {``, `, "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/../dev/zero"}]`, "clean"},
		"one place for two":    {`"deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/null"}]`, one, "one place"},
		"a target with dots":   {`"mounts": [{"hostPath": "/etc/passwd", "containerPath": "/opt/../etc/passwd"}]`, one, "clean"},
		"a file with dots":     {`"mounts": [{"hostPath": "/etc/../etc/passwd", "containerPath": "/opt/x"}]`, one, "clean"},
		"the whole root":       {`"mounts": [{"hostPath": "/etc", "containerPath": "/"}]`, one, "clean"},
		"a file that is gone":  {`"mounts": [{"hostPath": "/no/such.so", "containerPath": "/opt/x"}]`, one, "another version"},
		"two files at a place": {`"mounts": [{"hostPath": "/etc/passwd", "containerPath": "/opt/x"}, {"hostPath": "/etc/group", "containerPath": "/opt/x"}]`, one, "one place"},
	} {
		g, err := cdi.New(nil, nil, write(t, c.shared, c.first, two)).Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-1"})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q (%+v)", name, err, c.want, g)
		}
	}
	r := cdi.New(nil, nil, write(t, `"mounts": [{"hostPath": "/dev/null", "containerPath": "/run/service"}, {"hostPath": "tmpfs", "containerPath": "/x", "type": "tmpfs"}]`, one, two))
	if g, err := r.Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-1"}); err != nil || len(g.Binds) > 0 || len(g.Ignored) != 2 {
		t.Errorf("what is no file: %+v, %v", g, err)
	}
}

func TestUnknownDevicesSayWhatThereIs(t *testing.T) {
	dir := write(t, ``, one, two)
	empty := t.TempDir()
	for name, c := range map[string]struct {
		dir, device string
		want        []string
	}{
		"another":       {dir, "nvidia.com/gpu=GPU-9", []string{"nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"}},
		"none":          {empty, "nvidia.com/gpu=0", []string{"nvidia-ctk cdi generate", empty}},
		"of a vendor":   {empty, "vendor.test/thing=0", []string{"install one there"}},
		"no name":       {dir, "GPU-1", []string{"nvidia.com/gpu=0"}},
		"a path":        {dir, "/dev/mem", []string{"nvidia.com/gpu=0"}},
		"no directory":  {filepath.Join(empty, "none"), "nvidia.com/gpu=0", []string{"nvidia-ctk"}},
		"not even YAML": {broken(t), "nvidia.com/gpu=0", []string{"broken.yaml"}},
	} {
		_, err := cdi.New(nil, nil, c.dir).Resolve(t.Context(), []string{c.device})
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
}

func broken(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "broken.yaml"), []byte("a: ]"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whoever can write a specification can have any device: it must be the operator's.
func TestASpecificationOfOthersIsNotBelieved(t *testing.T) {
	resolve := func(dir string) error {
		_, err := cdi.New(nil, nil, dir).Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-1"})
		return err
	}
	for name, change := range map[string]func(dir string) error{
		"a file for all":      func(dir string) error { return os.Chmod(filepath.Join(dir, "nvidia.json"), 0o666) },
		"a directory for all": func(dir string) error { return os.Chmod(dir, 0o777) },
		"another's file":      func(dir string) error { return os.Chown(filepath.Join(dir, "nvidia.json"), 1000, 1000) },
		"another's directory": func(dir string) error { return os.Chown(dir, 1000, 1000) },
	} {
		if strings.HasPrefix(name, "another") && os.Geteuid() != 0 {
			continue
		}
		dir := write(t, ``, one, two)
		if err := resolve(dir); err != nil {
			t.Fatal(err)
		}
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if err := resolve(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A specification is made only where no file says anything about the devices: the operator's word is the last one.
func TestASpecificationIsMadeWhereThereIsNone(t *testing.T) {
	const text = `{"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "containerEdits": {"env": ["DRIVER=1"],
			"hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook"}], "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/dev/null"}]},
		"devices": [{"name": "GPU-1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/zero"}]}},
			{"name": "GPU-2", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "hostPath": "/dev/full"}]}}]}`
	var asked [][]string
	answer, failure := text, error(nil)
	maker := func(_ context.Context, ids []string) ([]byte, error) {
		asked = append(asked, ids)
		return []byte(answer), failure
	}
	names := []string{"nvidia.com/gpu=GPU-2", "nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"}
	empty := t.TempDir()
	g, err := cdi.New(nil, maker, empty).Resolve(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || !slices.Equal(asked[0], []string{"GPU-2", "GPU-1"}) {
		t.Errorf("it was asked for %q", asked)
	}
	if len(g.Devices) != 3 || g.Devices[0].Path != "/dev/nvidiactl" || g.Devices[1].Path != "/dev/nvidia1" || g.Devices[2].Path != "/dev/nvidia0" ||
		!slices.Contains(g.Env, "NVIDIA_VISIBLE_DEVICES=GPU-2,GPU-1") || !slices.Contains(g.Env, "DRIVER=1") || len(g.Ignored) != 1 || !strings.Contains(g.Ignored[0], "hooks are never run") {
		t.Errorf("it is %+v", g)
	}
	asked = nil
	for name, dir := range map[string]string{"one that has it": write(t, ``, one, two), "one that has others": write(t, ``, one, two), "one that cannot be read": broken(t)} {
		ask := map[bool]string{true: "nvidia.com/gpu=GPU-1", false: "nvidia.com/gpu=GPU-9"}[name == "one that has it"]
		if _, err := cdi.New(nil, maker, dir).Resolve(t.Context(), []string{ask}); (err == nil) != (name == "one that has it") || asked != nil {
			t.Errorf("with %s: %v, made for %q", name, err, asked)
		}
	}
	if _, err := cdi.New(nil, maker, empty).Resolve(t.Context(), []string{"other.test/gpu=GPU-1"}); err == nil || asked != nil {
		t.Errorf("of another vendor: %v, made for %q", err, asked)
	}
	for want, c := range map[string]struct {
		text string
		err  error
	}{
		"the driver sleeps":   {text, errors.New("the driver sleeps")},
		"does not have it":    {strings.ReplaceAll(text, "GPU-2", "GPU-3"), nil},
		`is about "a.test/b"`: {strings.ReplaceAll(text, "nvidia.com/gpu", "a.test/b"), nil},
		"none could be made":  {"a: ]", nil},
		"no device node":      {strings.ReplaceAll(text, "/dev/full", "/etc/passwd"), nil},
	} {
		answer, failure = c.text, c.err
		if g, err := cdi.New(nil, maker, empty).Resolve(t.Context(), names); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v (%+v)", want, err, g)
		}
	}
}

func TestWhoWasGivenNothingAsksForNothing(t *testing.T) {
	image := []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all"}
	spec := sandbox.Spec{Root: sandbox.Root{Env: image}}
	cdi.Withhold(&spec)
	if !slices.Equal(spec.Root.Env, []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void"}) || image[1] != "NVIDIA_VISIBLE_DEVICES=all" {
		t.Errorf("the environment is %q, that of the image %q", spec.Root.Env, image)
	}
	plain := sandbox.Spec{Root: sandbox.Root{Env: []string{"PATH=/bin"}}}
	cdi.Withhold(&plain)
	if !slices.Equal(plain.Root.Env, []string{"PATH=/bin"}) {
		t.Errorf("the environment is %q", plain.Root.Env)
	}
	for want, names := range map[string][]string{"void": {"amd.com/gpu=0"}, "GPU-1,GPU-2": {"nvidia.com/gpu=GPU-1", "amd.com/gpu=0", "nvidia.com/gpu=GPU-2"}} {
		if key, got := cdi.Visible(names); key != "NVIDIA_VISIBLE_DEVICES" || got != want {
			t.Errorf("%q make %s=%s, want %s", names, key, got, want)
		}
	}
}
