//go:build linux && cgo

package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"rockpool/internal/image"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/sandbox"
)

// agentDir makes this test program an agent with that directory, for as long as nobody kills it.
const agentDir = "ROCKPOOL_TEST_AGENT"

// counting is a task that writes its numbers with pauses, on both streams, and ends with a code of its own.
func counting(upTo int) *model.Allocation {
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; [ $((i %% 100)) = 0 ] && echo $i >&2; [ $((i %% 2000)) = 0 ] && sleep 0.03; done; exit 7", upTo)
	a := sandboxAlloc("one")
	t := a.Job.TaskGroups[0].Tasks[0]
	t.Config = map[string]any{"image": "host", "command": "sh", "args": []any{"-c", script}, "network_mode": "none"}
	t.LogConfig = model.LogConfig{MaxFiles: 10, MaxFileSizeMB: 1}
	a.Job.TaskGroups[0].Restart = model.RestartPolicy{Mode: model.RestartModeFail}
	return a
}

const (
	counted = 200_000
	parent  = "rockpool-killed-test"
)

func agentOf(dir string, s *server) (*node.Agent, *sandbox.Runtime, error) {
	r, err := sandbox.New(sandbox.Config{Dir: filepath.Join(dir, "sandboxes"), CgroupParent: parent, IDBase: 0x3d000000})
	if err != nil {
		return nil, nil, err
	}
	images, err := image.New(image.Config{Dir: filepath.Join(dir, "images")})
	if err != nil {
		return nil, nil, err
	}
	d := sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(r), Images: images}, sandboxed.NameDocker)[0]
	a, err := node.New(node.Config{DataDir: filepath.Join(dir, "node"), Drivers: []driver.Driver{d}, Servers: s, OnStop: node.Keep, Log: logging.Discard()})
	return a, r, err
}

// runAgent is the whole of a process that is about to be killed.
func runAgent(dir string) error {
	s := newServer()
	s.place(counting(counted))
	a, _, err := agentOf(dir, s)
	if err != nil {
		return err
	}
	return a.Run(context.Background())
}

// An agent that is killed at any moment, again and again, loses nothing of what a command writes and doubles nothing, and the last one knows how it ended.
func TestACommandSurvivesItsAgentsBeingKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	dir := t.TempDir()
	s := newServer()
	last, runtime, err := agentOf(dir, s)
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	t.Cleanup(func() {
		ids, _ := runtime.List()
		for _, id := range ids {
			if err := runtime.Remove(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
		if err := runtime.Close(); err != nil {
			t.Error(err)
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
		for _, g := range append(groups, "/sys/fs/cgroup/"+parent) {
			if err := os.Remove(g); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	logs := filepath.Join(dir, "node", "allocs", "one", "files", "alloc", "logs")
	for i := range 6 {
		agent := exec.Command(os.Args[0], "-test.run=^$")
		agent.Env = append(os.Environ(), agentDir+"="+dir)
		agent.Stderr = os.Stderr
		agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		before := len(whole(logs, "a.stdout."))
		for end := time.Now().Add(20 * time.Second); len(whole(logs, "a.stdout.")) < before+30_000+i*1111; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("agent %d: its task does not get on from %d bytes", i, before)
			}
		}
		_ = agent.Process.Kill()
		_ = agent.Wait()
	}
	if len(whole(logs, "a.stdout.")) >= len(numbers(counted, 1)) {
		t.Fatal("it had ended before the last agent was killed: nothing is proved")
	}
	s.place(counting(counted))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- last.Run(ctx) }()
	until(t, s, "one", model.ClientFailed)
	s.mu.Lock()
	state := s.latest["one"].TaskStates["a"]
	s.mu.Unlock()
	if got := exitOf(state); got != "7" {
		t.Errorf("its exit code is %q: %v", got, types(state))
	}
	for stream, step := range map[string]int{"stdout": 1, "stderr": 100} {
		if got, want := whole(logs, "a."+stream+"."), numbers(counted, step); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, not %d: it is different from byte %d on", stream, len(got), len(want), same(got, want))
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// exitOf is the exit code that the last end of a task tells.
func exitOf(s *model.TaskState) (code string) {
	for _, e := range s.Events {
		if e.Type == model.TaskTerminated {
			code = e.Details["exit_code"]
		}
	}
	return code
}

func numbers(upTo, step int) []byte {
	var all bytes.Buffer
	for i := step; i <= upTo; i += step {
		fmt.Fprintln(&all, i)
	}
	return all.Bytes()
}

// whole joins the files of a log.
func whole(dir, prefix string) (all []byte) {
	for i := 0; ; i++ {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(prefix, i)))
		if err != nil {
			return all
		}
		all = append(all, b...)
	}
}

func same(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func init() {
	becomeAgent = func() {
		if dir := os.Getenv(agentDir); dir != "" {
			fmt.Fprintln(os.Stderr, runAgent(dir))
			os.Exit(1)
		}
	}
}
