package docker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
)

// testImage has a shell and what the suite runs in it, made of this machine's own programs.
const testImage = "rockpool.test/shell:1"

// cgroupParent is the engine's own, so that it can be told from another engine's on this machine.
var cgroupParent = fmt.Sprintf("/rockpool-engine-test-%d", os.Getpid())

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// engine is a Docker Engine that the tests started for themselves.
type engine struct {
	endpoint string
	api      *client.Client
	crun     bool // is one of its runtimes
}

var shared struct {
	once   sync.Once
	engine *engine
	stop   func() error
	skip   string
	fail   error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.stop != nil {
		if err := shared.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "the engine left something behind:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// realEngine gives the engine that all tests of this package share, or skips.
func realEngine(t *testing.T) *engine {
	t.Helper()
	shared.once.Do(startEngine)
	switch {
	case shared.skip != "":
		t.Skip(shared.skip)
	case shared.fail != nil:
		t.Fatal(shared.fail)
	}
	return shared.engine
}

func startEngine() {
	daemon, err := exec.LookPath("dockerd")
	switch {
	case err != nil || runtime.GOOS != "linux":
		shared.skip = "there is no Docker Engine to start: install docker.io"
		return
	case os.Geteuid() != 0:
		shared.skip = "a Docker Engine needs root"
		return
	}
	dir, err := os.MkdirTemp("", "rockpool-engine-")
	if err != nil {
		shared.fail = err
		return
	}
	for _, driver := range []string{"overlay2", "vfs"} { // overlay2 does not work on top of another overlay
		if shared.engine, shared.stop, shared.fail = launch(daemon, dir, driver); shared.fail == nil {
			break
		}
	}
	if shared.fail == nil {
		shared.fail = shared.engine.load()
	}
}

// launch starts a daemon with a containerd of its own, and waits until it answers.
func launch(daemon, dir, storage string) (_ *engine, stop func() error, err error) {
	args := []string{"--bridge=none", "--iptables=false", "--ip6tables=false", "--data-root", filepath.Join(dir, storage), "--exec-root", filepath.Join(dir, "exec"),
		"--host", "unix://" + filepath.Join(dir, "socket"), "--pidfile", filepath.Join(dir, "pid"), "--storage-driver", storage, "--cgroup-parent", cgroupParent, "--config-file", filepath.Join(dir, "daemon.json")}
	e := &engine{endpoint: "unix://" + filepath.Join(dir, "socket")}
	if runc, err := exec.LookPath("runc"); err == nil { // the same program under another name still shows that the name is passed on
		args = append(args, "--add-runtime", "second="+runc)
	}
	if crun, err := exec.LookPath("crun"); err == nil {
		e.crun = true
		args = append(args, "--add-runtime", "crun="+crun)
	}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600); err != nil {
		return nil, nil, err
	}
	var log bytes.Buffer
	cmd := exec.Command(daemon, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() { ended <- cmd.Wait(); close(ended) })
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // containerd ends with it
		select {
		case <-ended:
		case <-time.After(patience):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		waiting.Wait()
		if e.api != nil {
			_ = e.api.Close()
		}
		return leftovers(dir)
	}
	if e.api, err = client.New(client.WithHost(e.endpoint)); err == nil {
		err = e.answer(ended)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w:\n%s", err, log.String()), stop())
	}
	return e, stop, nil
}

func (e *engine) answer(ended <-chan error) error {
	deadline := time.After(patience)
	for {
		_, err := e.api.Ping(context.Background(), client.PingOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errors.New("the engine ended while it started")
		case <-deadline:
			return fmt.Errorf("the engine does not answer: %w", err)
		case <-time.After(20 * time.Millisecond): // it tells nobody when it is ready
		}
	}
}

// leftovers reports and removes what an engine has left: mounts, and the directory.
func leftovers(dir string) error {
	var errs []error
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir) {
			errs = append(errs, fmt.Errorf("mount %s", f[1]), syscall.Unmount(f[1], syscall.MNT_DETACH))
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent)
	for _, g := range append(groups, "/sys/fs/cgroup"+cgroupParent) {
		if err := syscall.Rmdir(g); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("control group %s: %w", g, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

func (e *engine) load() error {
	image, err := shellImage()
	if err != nil {
		return err
	}
	tag, err := name.NewTag(testImage)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := tarball.Write(tag, image, &archive); err != nil {
		return err
	}
	r, err := e.api.ImageLoad(context.Background(), &archive)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// shellImage is an image of programs of this machine with the libraries that they need.
func shellImage() (v1.Image, error) {
	files := map[string]string{} // inside: outside
	for _, program := range []string{"sh", "cat", "sleep", "stty", "mkfifo", "rm", "id", "ls", "head", "tail", "env", "readlink", "pwd", "true", "setsid"} {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, err
		}
		files["bin/"+program] = path
		if err := libraries(path, files); err != nil {
			return nil, err
		}
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, {Name: "workspace/", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	add := func(name string, mode int64, content []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	for inside, outside := range files {
		content, err := os.ReadFile(outside)
		if err == nil {
			err = add(inside, 0o755, content)
		}
		if err != nil {
			return nil, err
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"
	if err := errors.Join(add("etc/passwd", 0o644, []byte(passwd)), add("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\n")), w.Close()); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config.Env, file.Config.WorkingDir = []string{"PATH=/bin", "FROM=image"}, "/workspace"
	return mutate.ConfigFile(image, file)
}

// libraries adds what a program is linked with: its interpreter, and the libraries it names, and those they name.
func libraries(path string, files map[string]string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			text, err := io.ReadAll(p.Open())
			if err != nil {
				return err
			}
			interpreter := strings.TrimRight(string(text), "\x00")
			files[strings.TrimPrefix(interpreter, "/")] = interpreter
		}
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	dirs := []string{"/lib/" + triplet, "/usr/lib/" + triplet, "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
	for _, library := range names {
		at := slices.IndexFunc(dirs, func(d string) bool { _, err := os.Stat(filepath.Join(d, library)); return err == nil })
		if at < 0 {
			return fmt.Errorf("%s needs %s, which is nowhere", path, library)
		}
		found := filepath.Join(dirs[at], library)
		if inside := strings.TrimPrefix(found, "/"); files[inside] == "" {
			files[inside] = found
			if err := libraries(found, files); err != nil {
				return err
			}
		}
	}
	return nil
}
