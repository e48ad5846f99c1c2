package docker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
)

// wire stands between a driver and the engine, and can be cut.
type wire struct {
	endpoint string
	to       string
	listener net.Listener
	serving  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

func (e *engine) context() context.Context { return context.Background() }

func newWire(t *testing.T, e *engine) *wire {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wire")
	w := &wire{endpoint: "unix://" + path, to: strings.TrimPrefix(e.endpoint, "unix://")}
	t.Cleanup(func() { w.cut(); w.serving.Wait() })
	w.splice(t)
	return w
}

// splice makes a wire that was cut whole again.
func (w *wire) splice(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", strings.TrimPrefix(w.endpoint, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	w.listener = l
	w.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.serving.Go(func() { w.pass(c) })
		}
	})
}

func (w *wire) pass(near net.Conn) {
	far, err := net.Dial("unix", w.to)
	if err != nil {
		_ = near.Close()
		return
	}
	w.mu.Lock()
	w.conns = append(w.conns, near, far)
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(far, near); _ = far.(*net.UnixConn).CloseWrite() })
	both.Go(func() { _, _ = io.Copy(near, far); _ = near.(*net.UnixConn).CloseWrite() })
	both.Wait()
	_ = near.Close()
	_ = far.Close()
}

// cut ends all connections and takes no new ones.
func (w *wire) cut() {
	_ = w.listener.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// farEngine is the engine as it looks from another machine: what it says of its own files is not to be found here.
func farEngine(t *testing.T, e *engine) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(e.endpoint, "unix://"))
	}}
	s := httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport, ErrorLog: log.New(io.Discard, "", 0), FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "engine" },
		ModifyResponse: func(r *http.Response) error {
			if !strings.Contains(r.Request.URL.Path, "/containers/") || !strings.HasSuffix(r.Request.URL.Path, "/json") {
				return nil
			}
			b, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			b = bytes.ReplaceAll(b, []byte(`"HostnamePath":"/`), []byte(`"HostnamePath":"/elsewhere/`))
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
			r.Header.Set("Content-Length", strconv.Itoa(len(b)))
			return err
		},
	})
	t.Cleanup(func() { s.Close(); transport.CloseIdleConnections() })
	return "tcp://" + s.Listener.Addr().String()
}

func TestAnEngineElsewhere(t *testing.T) {
	e := realEngine(t)
	n := newNode(t, docker.Config{Endpoint: farEngine(t, e)})
	cfg := n.config(nil)
	task := n.start(cfg)
	if task.Files() != nil {
		t.Error("files of another machine are offered")
	}
	if o := n.sh(task, `echo out; echo err >&2; exit 3`); o.ExitCode != 3 || o.out != "out\n" || o.err != "err\n" || o.Verdict != "exit" {
		t.Errorf("%+v", o)
	}
	x := n.begin(task, driver.ExecSpec{Argv: []string{"sleep", "300"}})
	if err := x.Signal(15); !errors.Is(err, driver.ErrNotSupported) {
		t.Errorf("signal: %v", err)
	}
	if _, err := n.driver.Recover(t.Context(), cfg); !errors.Is(err, driver.ErrTaskGone) {
		t.Errorf("recover beside an execution that nobody can end: %v", err)
	}
	if err := x.Kill(); err != nil {
		t.Fatal(err)
	}
	if o := n.finish(x); o.fate == nil && o.ExitCode == 0 {
		t.Errorf("killed with success: %+v", o)
	}
	select {
	case <-task.Done():
	case <-time.After(patience):
		t.Fatal("a program that could not be ended lives on")
	}
	if exit := task.Exit(); exit.ExitCode != 137 || exit.Signal != 9 {
		t.Errorf("%+v", exit)
	}
}

func TestALostConnectionIsNeverSuccess(t *testing.T) {
	e := realEngine(t)
	w := newWire(t, e)
	n := newNode(t, docker.Config{Endpoint: w.endpoint})
	task := n.start(n.config(nil))
	for _, tty := range []bool{false, true} {
		x := n.begin(task, driver.ExecSpec{Argv: []string{"sh", "-c", "echo ready; cat; sleep 3"}, TTY: tty}) // ends with success when its input ends, and not before the loss is seen
		if _, err := io.ReadFull(x.Stdout(), make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		w.cut()
		w.splice(t) // the engine is there all the time, and knows an exit code
		if o := n.finish(x); o.fate == nil {
			t.Errorf("terminal %v: an execution whose connection was lost has a result: %+v", tty, o)
		}
		select {
		case <-task.Done():
			t.Fatal("the task has ended with the connection")
		default:
		}
		if o := n.sh(task, `echo again`); o.out != "again\n" {
			t.Errorf("after the loss: %+v", o)
		}
	}
}

func TestAnEngineThatIsAway(t *testing.T) {
	e := realEngine(t)
	w := newWire(t, e)
	n := newNode(t, docker.Config{Endpoint: w.endpoint, Node: "away"})
	left := n.start(n.config(nil)) // of an earlier agent, as the sweep sees it
	w.cut()
	info := n.driver.Fingerprint(t.Context())
	if info.Detected || info.Healthy || !strings.Contains(info.HealthDescription, w.endpoint) {
		t.Errorf("%+v", info)
	}
	later := newNode(t, docker.Config{Endpoint: w.endpoint, Node: "away"})
	if err := later.driver.Sweep(t.Context(), nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("sweep: %v", err)
	}
	if _, err := later.driver.Start(t.Context(), later.config(nil)); !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), "dockerengine") {
		t.Errorf("start: %v", err)
	}
	w.splice(t)
	if info := later.driver.Fingerprint(t.Context()); !info.Healthy || info.Attributes["driver.docker.version"] == "" || !strings.Contains(info.Attributes["driver.docker.runtimes"], "runc") || !strings.Contains(info.Attributes["runtimes"], "runc") {
		t.Errorf("%+v", info)
	}
	select {
	case <-left.Done(): // the sweep was made up for
	case <-time.After(patience):
		t.Error("what an earlier agent left was not swept once the engine was back")
	}
}

// TestADamagedEngine talks to something that is no engine.
func TestADamagedEngine(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"refuses":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"is no API": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
	} {
		s := httptest.NewServer(answer)
		d := open(t, docker.Config{Endpoint: "tcp://" + s.Listener.Addr().String(), Node: "n"})
		if info := d.Fingerprint(t.Context()); info.Detected || info.HealthDescription == "" {
			t.Errorf("an engine that %s: %+v", name, info)
		}
		s.Close()
	}
	if _, err := docker.New(docker.Config{Endpoint: "nonsense"}); err == nil || !strings.Contains(err.Error(), "dockerengine") {
		t.Errorf("endpoint: %v", err)
	}
	// An engine that takes the connection and never answers.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	d := open(t, docker.Config{Endpoint: "tcp://" + l.Addr().String(), Node: "n"})
	if info := d.Fingerprint(ctx); info.Detected || info.HealthDescription == "" || errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("an engine that is silent: %+v", info)
	}
}
