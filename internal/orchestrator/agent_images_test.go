//go:build linux && cgo

package orchestrator_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
)

// TestAnAgentRunsAnImageOfARegistry goes the whole way: registry, pull, sandbox, execution, events.
func TestAnAgentRunsAnImageOfARegistry(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	depot := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer depot.Close()
	host := strings.TrimPrefix(depot.URL, "http://")
	pushProgram(t, host+"/course/hello:1")

	a, err := orchestrator.NewAgent(orchestrator.AgentConfig{
		DataDir: t.TempDir(), Address: "127.0.0.1:0", Token: "secret", RemoveOnStop: true, Log: logging.Discard(),
		Images: orchestrator.ImageConfig{PlainHTTP: []string{host}},
	})
	if err != nil {
		t.Skipf("this machine cannot run an agent: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-a.Ready()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c, err := api.NewClient(&api.Config{Address: a.URL(), SecretID: "secret", HttpClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	var found struct{ Digest, Reference string }
	if _, err := c.Raw().Write("/v1/rockpool/image/resolve", map[string]string{"Image": host + "/course/hello:1"}, &found, nil); err != nil || !strings.HasPrefix(found.Digest, "sha256:") {
		t.Fatalf("%+v %v", found, err)
	}
	task := api.NewTask("task", "docker").SetConfig("image", found.Reference).SetConfig("command", "sleep").SetConfig("args", []string{"infinity"})
	j := api.NewServiceJob("hello", "hello", "global", 50).AddDatacenter("*").AddTaskGroup(api.NewTaskGroup("group", 1).AddTask(task))
	if _, _, err := c.Jobs().Register(j, nil); err != nil {
		t.Fatal(err)
	}
	alloc := running(t, c, "hello")
	// The node describes itself anew at once when its metadata changes, and else from time to time.
	if _, err := c.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{NodeID: alloc.NodeID, Meta: map[string]*string{"look": new("again")}}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node names the image", func() bool {
		n, _, err := c.Nodes().Info(alloc.NodeID, nil)
		return err == nil && strings.Contains(n.Attributes["unique.rockpool.images"], found.Digest)
	})
	var told []string
	for _, e := range alloc.TaskStates["task"].Events {
		told = append(told, e.Type+": "+e.DisplayMessage)
	}
	if text := strings.Join(told, "\n"); !strings.Contains(text, "Driver: Downloading image "+found.Reference) || !strings.Contains(text, "Driver: Downloaded image") {
		t.Errorf("events:\n%s", text)
	}
	var out bytes.Buffer
	code, err := c.Allocations().Exec(t.Context(), alloc, "task", false, []string{"/hello"}, strings.NewReader(""), &out, &out, nil, nil)
	if err != nil || code != 7 || out.String() != "hello from an image" {
		t.Errorf("exit code %d, %q, %v", code, out.String(), err)
	}
	if _, _, err := c.Jobs().Deregister("hello", true, nil); err != nil {
		t.Error(err)
	}
}

// running waits by blocking queries until the job's allocation runs.
func running(t *testing.T, c *api.Client, job string) *api.Allocation {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for index := uint64(0); time.Now().Before(deadline); {
		stubs, meta, err := c.Jobs().Allocations(job, true, &api.QueryOptions{WaitIndex: index, WaitTime: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range stubs {
			if s.ClientStatus == "running" {
				alloc, _, err := c.Allocations().Info(s.ID, nil)
				if err != nil {
					t.Fatal(err)
				}
				return alloc
			}
			if s.ClientStatus == "failed" {
				text, _ := json.Marshal(s.TaskStates)
				t.Fatalf("the allocation failed: %s", text)
			}
		}
		index = meta.LastIndex
	}
	t.Fatal("the allocation never ran")
	return nil
}

// pushProgram stores an image that has one static program and nothing else.
func pushProgram(t *testing.T, ref string) {
	t.Helper()
	source, binary := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "hello")
	text := "package main\nimport \"os\"\nfunc main() { os.Stdout.WriteString(\"hello from an image\"); os.Exit(7) }\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", binary, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("no Go to build the image's program with: %s", out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "hello", Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(program)
	_ = w.Close()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	i, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, i); err != nil {
		t.Fatal(err)
	}
}
