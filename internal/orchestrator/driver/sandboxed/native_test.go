//go:build linux && cgo

package sandboxed_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// closing is a driver whose runtime ends with it, as both do when an agent ends.
type closing struct {
	driver.Driver
	runtime *sandbox.Runtime
}

func (c closing) Sweep(ctx context.Context, keep []string) error {
	return c.Driver.(driver.Sweeper).Sweep(ctx, keep)
}

func (c closing) Detach(ctx context.Context) error {
	return errors.Join(c.Driver.(driver.Detacher).Detach(ctx), c.runtime.Close())
}

// opener gives drivers of one machine, which is left clean at the end of the test.
func opener(t *testing.T) func(t *testing.T) driver.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	images, err := image.New(image.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := sandbox.Config{Dir: t.TempDir(), CgroupParent: fmt.Sprintf("rockpool-driver-test-%d", os.Getpid()), IDBase: 0x38000000}
	t.Cleanup(func() {
		if r, err := sandbox.New(cfg); err == nil { // also after a failure nothing stays behind
			left, _ := r.List()
			for _, id := range left {
				t.Errorf("sandbox %s was left behind: %v", id, r.Remove(context.Background(), id))
			}
			_ = r.Close()
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + cfg.CgroupParent)
		for _, g := range append(groups, "/sys/fs/cgroup/"+cfg.CgroupParent) {
			_ = os.Remove(g)
		}
	})
	return func(t *testing.T) driver.Driver {
		r, err := sandbox.New(cfg)
		if err != nil {
			t.Skipf("this machine cannot run sandboxes: %v", err)
		}
		t.Cleanup(func() { _ = r.Close() })
		d := sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(r), Images: images}, sandboxed.NameDocker)[0]
		return closing{d, r}
	}
}

func TestConformanceInRealSandboxes(t *testing.T) {
	drivertest.Run(t, drivertest.ShellSubject(drivertest.Subject{
		New:     opener(t),
		Forever: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}},
		Exits:   map[string]any{"image": "host", "command": "sh", "args": []any{"-c", "exit 3"}},
		Says: func(out, err string) map[string]any {
			return map[string]any{"image": "host", "command": "sh", "args": []any{"-c", `printf %s "$1"; printf %s "$2" >&2`, "sh", out, err}}
		},
		SaysOn: map[string]any{"image": "host", "command": "sh",
			"args": []any{"-c", `x=; i=0; while [ $i -lt 100 ]; do echo "$x"; x=x$x; i=$((i+1)); sleep 0.005; done`}},
		Wrong: map[string]any{"image": "host", "command": "true", "entrypoint": "x"},
		Names: "entrypoint",
	}))
}

func TestFilesOfARealSandbox(t *testing.T) {
	t.Run("native", func(t *testing.T) { filesOfASandbox(t, opener(t)(t), "") })
	for _, name := range []string{"crun", "runc", "runsc"} {
		t.Run(name, func(t *testing.T) { filesOfASandbox(t, ociOpener(t, name)(t), name) })
	}
}

func filesOfASandbox(t *testing.T, d driver.Driver, runtime string) {
	cfg := driver.TaskConfig{ID: ident.New() + ".task.1", StateDir: t.TempDir(), DiskMB: 32, Emit: func(string) {}, Task: &model.Task{Name: "task",
		Config: map[string]any{"image": "host", "runtime": runtime, "command": "sleep", "args": []any{"infinity"}}}}
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
			t.Error(err)
		}
	}()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []tar.Header{{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "dir/a.txt", Typeflag: tar.TypeReg, Mode: 0o600, Size: 5}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte("hello")[:h.Size])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	files := task.Files()
	if err := files.Apply(t.Context(), []string{"./*"}, &archive); err != nil {
		t.Fatal(err)
	}
	var names []string
	for e, err := range files.List(t.Context(), ".", true, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Type+e.Permissions+" "+e.Name+" "+e.Owner)
	}
	if want := []string{"drwxr-xr-x ./dir root", "-rw------- ./dir/a.txt root"}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
	r, info, err := files.Open(t.Context(), "dir/a.txt", "")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(r)
	_ = r.Close()
	if string(text) != "hello" || info.Size != 5 {
		t.Errorf("read %q, %+v", text, info)
	}
	for path, want := range map[string]error{"none": driver.ErrNotFound, "dir": driver.ErrNotRegular} {
		if _, _, err := files.Open(t.Context(), path, ""); !errors.Is(err, want) {
			t.Errorf("open %s: %v, want %v", path, err, want)
		}
	}
	if _, _, err := files.Open(t.Context(), "dir/a.txt", "user"); !errors.Is(err, driver.ErrPermission) {
		t.Errorf("open as another user: %v", err)
	}
	e, err := task.Exec(t.Context(), driver.ExecSpec{ID: "env", Argv: []string{"sh", "-c", `echo "$USER $HOME"; pwd`}, User: "user", Dir: "/tmp"})
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	out, _ := io.ReadAll(e.Stdout())
	_, _ = io.ReadAll(e.Stderr())
	<-e.Done()
	if string(out) != "user /home/user\n/tmp\n" {
		t.Errorf("a user sees %q", out)
	}
}

// Limits go down to the sandbox, verdicts come back up.
func TestLimitsOfARealExecution(t *testing.T) {
	d := opener(t)(t)
	cfg := driver.TaskConfig{ID: ident.New() + ".task.1", StateDir: t.TempDir(), DiskMB: 32, Task: &model.Task{Name: "task",
		Config: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}}}}
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
			t.Error(err)
		}
	}()
	for want, spec := range map[sandbox.Verdict]driver.ExecSpec{
		sandbox.VerdictExit:   {Argv: []string{"echo", "1234567"}},
		sandbox.VerdictTime:   {Argv: []string{"sh", "-c", "echo 1234567; trap '' QUIT; sleep 1000; sleep 1000"}, TimeLimit: 200 * time.Millisecond, Grace: 50 * time.Millisecond},
		sandbox.VerdictCPU:    {Argv: []string{"sh", "-c", "echo 1234567; while :; do :; done"}, CPULimit: 50 * time.Millisecond},
		sandbox.VerdictOutput: {Argv: []string{"cat", "/dev/zero"}, OutputLimit: 8},
	} {
		spec.ID = ident.New()
		e, err := task.Exec(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(e.Stdout())
		_, _ = io.ReadAll(e.Stderr())
		<-e.Done()
		if r, err := e.Result(); err != nil || r.Verdict != string(want) || r.OutputBytes != 8 || len(out) != 8 {
			t.Errorf("%s: %+v %v, %d bytes", want, r, err, len(out))
		}
	}
	service := driver.ExecSpec{ID: "service", Argv: []string{"sh", "-c", "(setsid sleep 4321 >/dev/null 2>&1 &)"}, Background: true}
	for _, spec := range []driver.ExecSpec{service, {ID: "look", Argv: []string{"sh", "-c", "pidof sleep || grep -lz 4321 /proc/[0-9]*/cmdline"}}} {
		e, err := task.Exec(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(e.Stdout())
		_, _ = io.ReadAll(e.Stderr())
		<-e.Done()
		if spec.ID == "look" && len(out) == 0 {
			t.Error("the service did not outlive its execution")
		}
	}
}

func TestATaskFindsItsFilesAndVolumes(t *testing.T) {
	d := opener(t)(t)
	volume := t.TempDir()
	if err := errors.Join(os.Chmod(volume, 0o755), os.WriteFile(filepath.Join(volume, "v"), []byte("volume"), 0o644)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg := driver.TaskConfig{ID: ident.New() + ".task.1", StateDir: t.TempDir(), DiskMB: 32, Stdout: &out,
		Files:  []driver.File{{Path: "local/deep/a", Mode: 0o640, Data: []byte("hello")}},
		Mounts: []driver.Mount{{Source: volume, Target: "/mnt", ReadOnly: true}},
		Task: &model.Task{Name: "task", Config: map[string]any{"image": "host", "command": "sh",
			"args": []any{"-c", `cat /local/deep/a; stat -c %a /local/deep/a; cat /mnt/v; echo x 2>/dev/null >/mnt/w || echo " refused"`}}}}
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-task.Done()
	if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
		t.Error(err)
	}
	if want := "hello640\nvolume refused\n"; out.String() != want {
		t.Errorf("it saw %q, want %q", out.String(), want)
	}
	cfg.ID, cfg.Mounts[0].ReadOnly = ident.New()+".task.1", false
	if _, err := d.Start(t.Context(), cfg); err == nil {
		t.Error("a volume to write to is shown")
	}
}
