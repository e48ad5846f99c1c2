package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"rockpool/internal/api/openapi"
	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/tests/contract"
)

func TestMain(m *testing.M) {
	if os.Getenv(asProcess) != "" {
		os.Exit(process())
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if missing := unseen(); code == 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.list").Value.String() == "" && len(missing) > 0 {
			fmt.Printf("documented answers that no test of this package has caused: %s\n", strings.Join(missing, ", "))
			code = 1
		}
		os.Exit(code)
	}))
}

// elsewhere are documented answers that a whole gateway does not give: it always has a version.
var elsewhere = []string{"version 404"}

// unseen are the documented answers that no test has caused.
func unseen() (missing []string) {
	c, err := documents()
	if err != nil {
		return []string{err.Error()}
	}
	seen := c.Seen()
	for _, answer := range c.Documented() {
		if !slices.Contains(seen, answer) && !slices.Contains(elsewhere, answer) {
			missing = append(missing, answer)
		}
	}
	return missing
}

type harness struct {
	*testing.T
	url     string
	cluster *nomadtest.Cluster
	stop    func()
	http    *http.Client
	// Every answer and every message is checked against the published documents.
	contract *contract.Contract
}

var documents = sync.OnceValues(func() (*contract.Contract, error) { return contract.New(openapi.Document, openapi.WebSocket) })

func published(t *testing.T) *contract.Contract {
	t.Helper()
	c, err := documents()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// off reports what is not as the documents say.
func (h *harness) off(err error) { h.T.Error(err) }

// start runs a gateway on a cluster until the test ends or stop is called.
func start(t *testing.T, c *nomadtest.Cluster, change ...func(*config.Config)) *harness {
	t.Helper()
	cfg := config.Default()
	cfg.Server.Port, cfg.Server.Token, cfg.Nomad.Address = 0, "secret", c.URL
	for _, f := range change {
		f(&cfg)
	}
	log, err := logging.New(t.Output(), "debug", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	var embedded gateway.Embedded
	if within {
		cfg.Nomad.Address, embedded = "", neighbour{c}
	}
	g, err := gateway.New(cfg, embedded, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	h := &harness{T: t, url: "http://" + g.Addr().String() + "/api/v1", cluster: c}
	h.contract = published(t)
	h.http = &http.Client{Transport: h.contract.Transport(&http.Transport{}, h.off)}
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		h.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gateway ended with: %v", err)
		}
	}
	t.Cleanup(h.stop)
	return h
}

func (h *harness) do(method, path, body string) (int, string, http.Header) {
	h.Helper()
	r, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	r.Header.Set("Poseidon-Token", "secret")
	resp, err := h.http.Do(r)
	if errors.Is(err, io.EOF) {
		return 0, "cut: " + err.Error(), nil
	}
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, "cut: " + err.Error(), resp.Header
	}
	return resp.StatusCode, string(data), resp.Header
}

func (h *harness) want(method, path, body string, status int, text string) string {
	h.Helper()
	code, got, _ := h.do(method, path, body)
	if code != status || !strings.Contains(got, text) || (text == "" && got != "") {
		h.Fatalf("%s %s: got %d %q, want %d with %q", method, path, code, got, status, text)
	}
	return got
}

// eventually waits for what events bring about.
func (h *harness) eventually(what string, cond func() bool) {
	h.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			h.Fatalf("it never came to this: %s", what)
		}
	}
}

const python = `{"prewarmingPoolSize":SIZE,"cpuLimit":100,"memoryLimit":256,"image":"host","networkAccess":false,"exposedPorts":[]}`

func env(size string) string { return strings.Replace(python, "SIZE", size, 1) }

func (h *harness) stats(id string) (idle, used int) {
	_, body, _ := h.do("GET", "/statistics/execution-environments", "")
	var s map[string]struct{ IdleRunners, UsedRunners int }
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		h.Fatal(err)
	}
	return s[id].IdleRunners, s[id].UsedRunners
}

func (h *harness) pool(id string, idle, used int) {
	h.Helper()
	h.eventually("the pool's size", func() bool { i, u := h.stats(id); return i == idle && u == used })
}

func (h *harness) claim(timeout string) string {
	h.Helper()
	var r struct{ RunnerID string }
	body := h.want("POST", "/runners", `{"executionEnvironmentId":10,"inactivityTimeout":`+timeout+`}`, 200, "runnerId")
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		h.Fatal(err)
	}
	return r.RunnerID
}

// ready is a gateway with environment 10 and n idle runners.
func ready(t *testing.T, n string, idle int, change ...func(*config.Config)) *harness {
	t.Helper()
	h := start(t, nomadtest.New(t), change...)
	h.want("PUT", "/execution-environments/10", env(n), 201, "")
	h.pool("10", idle, 0)
	return h
}

func (h *harness) execute(runner, request string) string {
	h.Helper()
	var e struct{ WebSocketURL string }
	body := h.want("POST", "/runners/"+runner+"/execute", request, 200, "websocketUrl")
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		h.Fatal(err)
	}
	return e.WebSocketURL
}

func (h *harness) dial(url string, protocols ...string) *websocket.Conn {
	h.Helper()
	d := websocket.Dialer{Subprotocols: protocols, NetDialContext: h.contract.Dial(h.off)}
	c, _, err := d.Dial(url, http.Header{"Poseidon-Token": {"secret"}})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(15 * time.Second))
	return c
}

// rest reads all messages, joined, and the close code.
func (h *harness) rest(c *websocket.Conn) (messages []string, code int) {
	for {
		_, data, err := c.ReadMessage()
		if e, ok := err.(*websocket.CloseError); ok {
			return messages, e.Code
		}
		if err != nil {
			h.Fatalf("after %q: %v", messages, err)
		}
		messages = append(messages, string(bytes.TrimSpace(data)))
	}
}

func (h *harness) messages(c *websocket.Conn, want ...string) {
	h.Helper()
	got, code := h.rest(c)
	if strings.Join(got, "\n") != strings.Join(want, "\n") || code != 1000 {
		h.Fatalf("got %q and close %d, want %q and 1000", got, code, want)
	}
}

// runGateway runs one until it ends by itself.
func runGateway(t *testing.T, cfg config.Config) error {
	t.Helper()
	g, err := gateway.New(cfg, nil, logging.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return g.Run(ctx)
}
