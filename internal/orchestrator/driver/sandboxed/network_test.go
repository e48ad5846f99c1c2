//go:build linux && cgo

package sandboxed_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// namespace makes a network namespace with a name, whose unprivileged ports begin at 0: by that it is known again inside.
func namespace(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make namespace: %v", err)
			return
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0); err != nil {
			t.Error(err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

func run(t *testing.T, task driver.Task, script string) string {
	t.Helper()
	e, err := task.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"sh", "-c", script}, User: "user"})
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, e.Stderr()) })
	out, err := io.ReadAll(e.Stdout())
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	<-e.Done()
	return string(out)
}

func TestASandboxInTheNetworkOfItsAllocation(t *testing.T) {
	t.Run("native", func(t *testing.T) { inANetwork(t, opener(t)(t), "") })
	for _, name := range []string{"crun", "runc", "runsc"} {
		t.Run(name, func(t *testing.T) { inANetwork(t, ociOpener(t, name)(t), name) })
	}
}

func inANetwork(t *testing.T, d driver.Driver, class string) {
	t.Helper()
	ns := namespace(t)
	start := func(cfg driver.TaskConfig) driver.Task {
		t.Helper()
		cfg.ID, cfg.StateDir, cfg.DiskMB = ident.New()+".task.1", t.TempDir(), 32
		cfg.Task = &model.Task{Name: "task", Config: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}, "network_mode": cfg.Group, "runtime": class}}
		cfg.Emit = func(string) {}
		task, err := d.Start(t.Context(), cfg)
		if class == "runc" && err != nil && strings.Contains(err.Error(), "update it") {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
				t.Error(err)
			}
		})
		return task
	}
	asked := []model.Network{{Mode: "bridge"}}
	given := &driver.Network{NetNS: ns, Address: "172.30.64.2", Hostname: "box", Nameservers: []string{"172.30.64.1"}, Searches: []string{"lab.example"}, Options: []string{"ndots:2"}}
	with := start(driver.TaskConfig{Networks: asked, Network: given})
	if got, want := run(t, with, "hostname; cat /etc/hostname /etc/resolv.conf; tail -1 /etc/hosts; stat -c '%U %a' /etc/resolv.conf"),
		"box\nbox\nnameserver 172.30.64.1\nsearch lab.example\noptions ndots:2\n172.30.64.2 box\nroot 644\n"; got != want {
		t.Errorf("inside it is %q, want %q", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(ns, &st); err != nil {
		t.Fatal(err)
	}
	const bind = "python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 80)); print(\"bound\")'"
	if got := run(t, with, bind); got != "bound\n" {
		t.Errorf("the namespace is not the allocation's: %q", got)
	}
	off := start(driver.TaskConfig{Networks: asked, Network: given, Group: "none"})
	if got := run(t, off, bind+"; hostname; cat /proc/net/dev | wc -l"); got != "runner\n3\n" {
		t.Errorf("with network_mode none it is %q", got)
	}
	for mode, kind := range map[string]fault.Kind{"host": fault.Invalid, "bridge": fault.Unsupported, "cni/lab": fault.Unsupported} {
		_, err := d.Start(t.Context(), driver.TaskConfig{ID: ident.New(), Networks: []model.Network{{Mode: mode}},
			Emit: func(string) {}, Task: &model.Task{Config: map[string]any{"image": "host", "command": "true", "runtime": class}}})
		if !fault.Is(err, kind) || !strings.Contains(err.Error(), mode) {
			t.Errorf("mode %s: %v", mode, err)
		}
	}
}
