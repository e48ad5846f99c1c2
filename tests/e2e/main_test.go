package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rockpool/tests/contract"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// binaries is where TestMain put what was built.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(service.Main(m, "the end-to-end tests", &binaries, "rockpool/cmd/gateway", "rockpool/cmd/orchestrator", "rockpool/tests/demo"))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
}

const token = "e2e-token"

// start runs a gateway for one test and stops it afterwards, checking that nothing is left behind.
func start(t *testing.T, change ...func(*service.Options)) *service.Service {
	t.Helper()
	needRoot(t)
	before, err := service.TakeBaseline()
	if err != nil {
		t.Fatal(err)
	}
	log := &service.Log{}
	o := service.Options{Binary: filepath.Join(binaries, "gateway"), Dir: t.TempDir(), Token: token, Log: log}
	for _, c := range change {
		c(&o)
	}
	s, err := service.Start(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	checked(t, s)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if !o.Keep {
			if left, err := before.Since(); err != nil || len(left) > 0 {
				t.Errorf("left behind: %q, %v", left, err)
			}
		}
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", log)
		}
	})
	return s
}

// documents are those that the first gateway served. All are the same binary.
var documents *contract.Contract

// checked has every answer and message of a gateway checked against the documents that it serves itself.
func checked(t *testing.T, s *service.Service) {
	t.Helper()
	if documents == nil {
		var err error
		documents, err = contract.Load(http.DefaultClient, s.URL)
		http.DefaultClient.CloseIdleConnections()
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Check(documents, func(err error) { t.Error(err) })
}

// context bounds one test.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func provision(ctx context.Context, t *testing.T, s *service.Service, id int, pool, memory uint) {
	t.Helper()
	err := s.PutEnvironment(ctx, id, platform.Environment{PrewarmingPoolSize: pool, CPULimit: 100, MemoryLimit: memory, Image: "host"})
	if err != nil {
		t.Fatal(err)
	}
	waitStatistics(ctx, t, s, id, func(st platform.Statistics) bool { return st.IdleRunners == pool })
}

// waitStatistics asks for the statistics until ok is satisfied with them.
func waitStatistics(ctx context.Context, t *testing.T, s *service.Service, id int, ok func(platform.Statistics) bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := s.Statistics(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ok(all[fmt.Sprint(id)]) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the statistics stay at %+v", all)
		case <-tick.C:
		}
	}
}

func claim(ctx context.Context, t *testing.T, s *service.Service, id int) string {
	t.Helper()
	r, err := s.Claim(ctx, id, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// run executes a command and expects an exit message.
func run(ctx context.Context, t *testing.T, s *service.Service, runner, command string) platform.Outcome {
	t.Helper()
	o, err := s.Run(ctx, runner, platform.Execution{Command: command, TimeLimit: 30})
	if err != nil {
		t.Fatalf("%s: %v (%+v)", command, err, o)
	}
	if o.Final.Type != "exit" {
		t.Fatalf("%s ended with %+v; stdout %q, stderr %q", command, o.Final, o.Stdout, o.Stderr)
	}
	return o
}

func lines(s string) []string {
	return strings.Split(strings.TrimSuffix(strings.ReplaceAll(s, "\r\n", "\n"), "\n"), "\n")
}
