//go:build linux && cgo

package node_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

// together is an allocation of two tasks, each of which says what it finds and goes on when told to.
func together(id string) *model.Allocation {
	a := sandboxAlloc(id)
	g := a.Job.TaskGroups[0]
	first := g.Tasks[0]
	first.Config = map[string]any{"image": "host", "command": "sh", "args": []any{"-c", "umask 0; echo hello >$NOMAD_ALLOC_DIR/data/note; sleep 300"}}
	second := *first
	second.Name = "b"
	second.Config = map[string]any{"image": "host", "command": "sh", "args": []any{"-c",
		"while ! grep -q hello $NOMAD_ALLOC_DIR/data/note; do sleep 0.02; done 2>/dev/null; echo seen >$NOMAD_TASK_DIR/x && echo seen >$NOMAD_SECRETS_DIR/y; sleep 300"}}
	g.Tasks = append(g.Tasks, &second)
	a.Resources.Tasks["b"] = &model.AllocatedTask{CPU: 100, MemoryMB: 64}
	return a
}

func outputOf(t *testing.T, a *node.Agent, alloc, task, script string) (string, int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) { // an allocation runs with the first of its tasks
		if _, err := a.Task(t.Context(), alloc, task); err == nil {
			break
		}
	}
	e, err := a.Exec(t.Context(), alloc, task, driver.ExecSpec{ID: ident.New(), Argv: []string{"sh", "-c", script + " 2>&1"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	out, _ := io.ReadAll(e.Stdout())
	<-e.Done()
	r, err := e.Result()
	if err != nil {
		t.Fatal(err)
	}
	return string(out), r.ExitCode
}

// What one task of an allocation writes into its directory the others see, for as long as one of them runs, across a restart of the agent; another
// allocation does not. It takes no more than the group's disk, and gives nobody any rights.
func TestTasksOfAnAllocationShareADirectory(t *testing.T) {
	dir, s := t.TempDir(), newServer()
	s.place(together("one"), together("two"))
	shared := filepath.Join(dir, "node", "allocs", "one", "files", "alloc", "data")
	withRuntime(t, dir, s, node.Keep, func(a *node.Agent) {
		until(t, s, "one", model.ClientRunning)
		until(t, s, "two", model.ClientRunning)
		for i, c := range []struct {
			task, script, want string
			code               int
		}{
			{"b", "while ! grep -q hello /alloc/data/note; do sleep 0.02; done 2>/dev/null; cat /alloc/data/note", "hello\n", 0},
			{"b", "while ! [ -e /local/x ] || ! [ -e /secrets/y ]; do sleep 0.02; done; cat /local/x /secrets/y", "seen\nseen\n", 0},
			{"b", "echo more >>/alloc/data/note; mkdir /alloc/data/deep && echo x >/alloc/data/deep/er", "", 0},
			{"a", "cat /alloc/data/note; ls /alloc/data; stat -c %u:%g /alloc/data/deep/er", "hello\nmore\ndeep\nnote\n0:0\n", 0},
			{"a", "ls /local", "", 0}, // its own
			{"a", "dd if=/dev/zero of=/alloc/data/much bs=1M count=40 2>/dev/null && echo it fits; s=$(stat -c %s /alloc/data/much); rm /alloc/data/much; [ $s -gt 1000000 ] && [ $s -le 16777216 ]", "", 0},
			{"a", "cp /bin/sleep /alloc/data/s && chmod 6755 /alloc/data/s && grep ' /alloc/data ' /proc/mounts | grep -c nosuid,nodev", "1\n", 0},
			{"a", "mknod /alloc/data/null c 1 3", "", 1},
			{"a", "rmdir /alloc/data || mv /alloc/data /alloc/away", "", 1},
			{"a", "ln -s /etc/shadow /alloc/data/link; ln -s ../../../../../.. /alloc/data/up; mkfifo /alloc/data/fifo", "", 0},
		} {
			got, code := outputOf(t, a, "one", c.task, c.script)
			if code != c.code || c.code == 0 && got != c.want {
				t.Errorf("%d: %s: %q, exit code %d", i, c.script, got, code)
			}
		}
		if got, _ := outputOf(t, a, "two", "a", "while ! grep -q hello /alloc/data/note; do sleep 0.02; done 2>/dev/null; ls /alloc/data; cat /alloc/data/note"); got != "note\nhello\n" {
			t.Errorf("another allocation has %q", got)
		}
		// The node sees it, mounted so that nothing in it has rights there either.
		b, err := os.ReadFile(filepath.Join(shared, "note"))
		mounts, _ := os.ReadFile("/proc/self/mounts")
		if err != nil || !bytes.Equal(b, []byte("hello\nmore\n")) || !strings.Contains(string(mounts), shared+" tmpfs rw,nosuid,nodev") {
			t.Errorf("the node has %q, %v", b, err)
		}
	})
	s.set(func() { delete(s.latest, "one") })
	withRuntime(t, dir, s, node.Remove, func(a *node.Agent) {
		until(t, s, "one", model.ClientRunning)
		if got, _ := outputOf(t, a, "one", "b", "cat /alloc/data/note"); got != "hello\nmore\n" {
			t.Errorf("after a restart of the agent: %q", got)
		}
	})
	mounts, _ := os.ReadFile("/proc/self/mounts")
	if strings.Contains(string(mounts), dir) {
		t.Errorf("left mounted: %s", mounts)
	}
}

// One task alone has the directory to itself; it costs no mount of the node's.
func TestATaskAloneHasTheDirectoryToo(t *testing.T) {
	dir, s := t.TempDir(), newServer()
	one := sandboxAlloc("one")
	one.Job.TaskGroups[0].Tasks[0].Config = map[string]any{"image": "host", "command": "sh", "args": []any{"-c", "echo $NOMAD_ALLOC_DIR >$NOMAD_ALLOC_DIR/data/note; sleep 300"}}
	one.Job.TaskGroups[0].Tasks[0].User = "nobody"
	s.place(one)
	withRuntime(t, dir, s, node.Remove, func(a *node.Agent) {
		until(t, s, "one", model.ClientRunning)
		if got, code := outputOf(t, a, "one", "a", "while ! [ -s /alloc/data/note ]; do sleep 0.02; done; cat /alloc/data/note"); got != "/alloc\n" || code != 0 {
			t.Errorf("%q, exit code %d", got, code)
		}
		mounts, _ := os.ReadFile("/proc/self/mounts")
		if strings.Contains(string(mounts), dir) {
			t.Errorf("mounted: %s", mounts)
		}
	})
}

// Who has lost the state of a node loses no mount with it: what is there is taken away before its allocation is forgotten, also where the servers have forgotten it before.
func TestADirectoryWhoseRecordIsLostIsTakenAway(t *testing.T) {
	t.Run("known to the servers", func(t *testing.T) { recordLost(t, true) })
	t.Run("forgotten", func(t *testing.T) { recordLost(t, false) })
}

func recordLost(t *testing.T, known bool) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(m.dir, "allocs", "one", "files", "alloc", "data")
		if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount("test", at, "tmpfs", 0, ""), os.Remove(filepath.Join(m.dir, "allocs.log"))); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
		if !known {
			m.server.set(func() { delete(m.server.allocs, "one") })
		}
		m.start()
		synctest.Wait()
		if known {
			m.server.purge("one")
		}
		after(10 * time.Minute)
		mounts, _ := os.ReadFile("/proc/self/mounts")
		m.server.set(func() {
			if strings.Contains(string(mounts), at) || known && !m.server.latest["one"].Buried {
				t.Errorf("mounted %t, buried %t", strings.Contains(string(mounts), at), m.server.latest["one"].Buried)
			}
		})
	})
}
