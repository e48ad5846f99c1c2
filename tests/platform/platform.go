// Package platform speaks the gateway's API as an education platform does: it is the client of the demo, the end-to-end tests and
// the benchmark. It shares no code with the gateway, so that a mistake in the wire cannot hide in both.
package platform

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/tests/contract"
)

// Client calls one gateway.
type Client struct {
	base  string
	token string
	http  *http.Client
	ws    *websocket.Dialer
}

// New makes a client for the gateway at base, such as http://127.0.0.1:7200.
func New(base, token string) *Client {
	return &Client{
		base:  strings.TrimSuffix(base, "/") + "/api/v1",
		token: token,
		http:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxIdleConns: 256}},
		ws:    &websocket.Dialer{HandshakeTimeout: 10 * time.Second},
	}
}

// Check has every answer and every message from now on checked against the gateway's own documents. report is told what is wrong.
func (c *Client) Check(documents *contract.Contract, report func(error)) {
	c.http.Transport = documents.Transport(c.http.Transport, report)
	c.ws.NetDialContext = documents.Dial(report)
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// StatusError is an answer with a status other than the expected one.
type StatusError struct {
	Method, Path string
	Status       int
	Body         string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: status %d: %s", e.Method, e.Path, e.Status, strings.TrimSpace(e.Body))
}

// Do sends one request and returns status and body.
func (c *Client) Do(ctx context.Context, method, path string, body any) (int, []byte, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return 0, nil, err
	}
	if c.token != "" {
		req.Header.Set("Poseidon-Token", c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, data, err
}

func (c *Client) call(ctx context.Context, method, path string, body, into any, want ...int) error {
	status, data, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	for _, w := range want {
		if status == w {
			if into == nil {
				return nil
			}
			return json.Unmarshal(data, into)
		}
	}
	return &StatusError{method, path, status, string(data)}
}

// Environment is the definition of an execution environment.
type Environment struct {
	ID                 int      `json:"id,omitempty"`
	PrewarmingPoolSize uint     `json:"prewarmingPoolSize"`
	CPULimit           uint     `json:"cpuLimit"`
	MemoryLimit        uint     `json:"memoryLimit"`
	Image              string   `json:"image"`
	NetworkAccess      bool     `json:"networkAccess"`
	ExposedPorts       []uint16 `json:"exposedPorts"`
	WarmUp             *WarmUp  `json:"warmup,omitempty"`
}

// WarmUp is an interpreter that waits in idle runners.
type WarmUp struct {
	Command []string `json:"command"`
	Imports []string `json:"imports,omitempty"`
	Active  bool     `json:"active,omitempty"` // of an answer
}

// PutEnvironment creates or replaces an environment.
func (c *Client) PutEnvironment(ctx context.Context, id int, e Environment) error {
	if e.ExposedPorts == nil {
		e.ExposedPorts = []uint16{}
	}
	return c.call(ctx, http.MethodPut, "/execution-environments/"+strconv.Itoa(id), e, nil, 201, 204)
}

// DeleteEnvironment removes one with all its runners.
func (c *Client) DeleteEnvironment(ctx context.Context, id int) error {
	return c.call(ctx, http.MethodDelete, "/execution-environments/"+strconv.Itoa(id), nil, nil, 204)
}

// Statistics is what the gateway says of one environment's pool.
type Statistics struct {
	ID                 int  `json:"id"`
	PrewarmingPoolSize uint `json:"prewarmingPoolSize"`
	IdleRunners        uint `json:"idleRunners"`
	UsedRunners        uint `json:"usedRunners"`
}

// Statistics returns the pools by environment id.
func (c *Client) Statistics(ctx context.Context) (map[string]Statistics, error) {
	var s map[string]Statistics
	err := c.call(ctx, http.MethodGet, "/statistics/execution-environments", nil, &s, 200)
	return s, err
}

// Claim takes a runner out of an environment's pool.
func (c *Client) Claim(ctx context.Context, env int, inactivity time.Duration) (string, error) {
	var r struct {
		RunnerID string `json:"runnerId"`
	}
	err := c.call(ctx, http.MethodPost, "/runners",
		map[string]any{"executionEnvironmentId": env, "inactivityTimeout": int(inactivity.Seconds())}, &r, 200)
	return r.RunnerID, err
}

// Release gives a runner back to be destroyed.
func (c *Client) Release(ctx context.Context, runner string) error {
	return c.call(ctx, http.MethodDelete, "/runners/"+runner, nil, nil, 204)
}

// File is one file to copy into a runner; a path that ends in / is a directory.
type File struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
}

// Copy deletes and then writes files.
func (c *Client) Copy(ctx context.Context, runner string, deletes []string, files ...File) error {
	return c.call(ctx, http.MethodPatch, "/runners/"+runner+"/files", map[string]any{"delete": deletes, "copy": files}, nil, 204)
}

// FileHeader is one entry of a listing.
type FileHeader struct {
	Name             string `json:"name"`
	EntryType        string `json:"entryType"`
	LinkTarget       string `json:"linkTarget"`
	Size             int64  `json:"size"`
	ModificationTime int64  `json:"modificationTime"`
	Permissions      string `json:"permissions"`
	Owner            string `json:"owner"`
	Group            string `json:"group"`
}

// List lists a runner's files.
func (c *Client) List(ctx context.Context, runner, path string, recursive bool) ([]FileHeader, error) {
	var r struct {
		Files []FileHeader `json:"files"`
	}
	q := url.Values{"path": {path}, "recursive": {strconv.FormatBool(recursive)}}
	err := c.call(ctx, http.MethodGet, "/runners/"+runner+"/files?"+q.Encode(), nil, &r, 200)
	return r.Files, err
}

// Download reads one file of a runner.
func (c *Client) Download(ctx context.Context, runner, path string) ([]byte, error) {
	p := "/runners/" + runner + "/files/raw?" + url.Values{"path": {path}}.Encode()
	status, data, err := c.Do(ctx, http.MethodGet, p, nil)
	if err == nil && status != 200 {
		err = &StatusError{http.MethodGet, p, status, string(data)}
	}
	return data, err
}

// Execution is a command to run.
type Execution struct {
	Command     string            `json:"command"`
	Privileged  bool              `json:"privilegedExecution"`
	TimeLimit   int               `json:"timeLimit"` // seconds; 0 = none
	Environment map[string]string `json:"environment,omitempty"`
}

// Execute stores an execution and returns the URL that starts it.
func (c *Client) Execute(ctx context.Context, runner string, e Execution) (string, error) {
	var r struct {
		WebsocketURL string `json:"websocketUrl"`
	}
	err := c.call(ctx, http.MethodPost, "/runners/"+runner+"/execute", e, &r, 200)
	return r.WebsocketURL, err
}

// Connect opens the WebSocket of an execution, which starts it.
func (c *Client) Connect(ctx context.Context, wsURL string, protocols ...string) (*Session, error) {
	h := http.Header{}
	if c.token != "" {
		h.Set("Poseidon-Token", c.token)
	}
	d := *c.ws
	d.Subprotocols = protocols
	conn, resp, err := d.DialContext(ctx, wsURL, h)
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			return nil, &StatusError{http.MethodGet, wsURL, resp.StatusCode, string(body)}
		}
		return nil, err
	}
	return &Session{conn: conn}, nil
}

// Start stores an execution and connects to it.
func (c *Client) Start(ctx context.Context, runner string, e Execution) (*Session, error) {
	u, err := c.Execute(ctx, runner, e)
	if err != nil {
		return nil, err
	}
	return c.Connect(ctx, u)
}

// Run starts an execution, gives it no input, and waits for its end.
func (c *Client) Run(ctx context.Context, runner string, e Execution) (Outcome, error) {
	s, err := c.Start(ctx, runner, e)
	if err != nil {
		return Outcome{}, err
	}
	defer s.Abort()
	return s.Wait(ctx)
}

// Healthy reports whether /health answers 204.
func (c *Client) Healthy(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/health", nil, nil, 204)
}
