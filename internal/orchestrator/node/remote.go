package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

const (
	// silence is how long a stream may say nothing; servers say something every 10 s.
	silence = 30 * time.Second
	// maxMessage bounds one message of a stream.
	maxMessage = 256 << 20
	// maxAnswer bounds all other answers.
	maxAnswer = 1 << 20
	// callTimeout bounds a call whose context has no deadline.
	callTimeout = 30 * time.Second
)

// Remote is the connection to servers over HTTP. It keeps to one server for as long as that answers.
type Remote struct {
	addrs    []string
	identity Identity
	token    string
	client   *http.Client
	current  atomic.Uint32
}

// NewRemote makes a connection to the servers at addrs, such as https://10.0.0.1:4646. A token is needed only where the servers
// want one to register. The client must have no timeout of its own.
func NewRemote(addrs []string, identity Identity, token string, client *http.Client) (*Remote, error) {
	if len(addrs) == 0 {
		return nil, errors.New("connect to servers: no address is given")
	}
	r := &Remote{identity: identity, token: token, client: client}
	for _, a := range addrs {
		u, err := url.Parse(a)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("connect to servers: %q is not an http or https address", a)
		}
		r.addrs = append(r.addrs, strings.TrimRight(a, "/"))
	}
	return r, nil
}

// Register makes the node known.
func (r *Remote) Register(ctx context.Context, n *model.Node) (lease model.NodeLease, err error) {
	return lease, r.call(ctx, http.MethodPut, "register", n, &lease)
}

// Heartbeat tells that the node lives.
func (r *Remote) Heartbeat(ctx context.Context) (lease model.NodeLease, err error) {
	return lease, r.call(ctx, http.MethodPut, "heartbeat", nil, &lease)
}

// UpdateAllocations reports states.
func (r *Remote) UpdateAllocations(ctx context.Context, updates []model.AllocUpdate) error {
	return r.call(ctx, http.MethodPut, "allocations", updates, nil)
}

// Watch reads one stream.
func (r *Remote) Watch(ctx context.Context, f func(model.AllocPush) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() {
		cancel(fault.New(fault.Unavailable, "the server said nothing for %v", silence))
	})
	defer watchdog.Stop()
	body, err := r.open(ctx, http.MethodGet, "watch", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	bounded := &io.LimitedReader{R: body, N: maxMessage}
	lines := json.NewDecoder(&alive{r: bounded, heard: func() { watchdog.Reset(silence) }})
	for {
		var p model.AllocPush
		bounded.N = maxMessage
		if err := lines.Decode(&p); err != nil {
			r.turn()
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("read stream of changes: %w", err)
		}
		if p.Generation == 0 && !p.Full {
			continue // a sign of life
		}
		if err := f(p); err != nil {
			return err
		}
	}
}

// alive tells whenever something was read.
type alive struct {
	r     io.Reader
	heard func()
}

func (a *alive) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.heard()
	}
	return n, err
}

// call makes one request and decodes its answer into out, unless that is nil.
func (r *Remote) call(ctx context.Context, method, what string, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	body, err := r.open(ctx, method, what, in)
	if err != nil {
		return err
	}
	defer body.Close()
	answer := io.LimitReader(body, maxAnswer)
	if out != nil {
		if err := json.NewDecoder(answer).Decode(out); err != nil {
			return fmt.Errorf("read answer to node %s: %w", what, err)
		}
	}
	_, _ = io.Copy(io.Discard, answer) // or the connection could not be used again
	return nil
}

func (r *Remote) open(ctx context.Context, method, what string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", what, err)
		}
		body = bytes.NewReader(b)
	}
	base := r.addrs[int(r.current.Load())%len(r.addrs)]
	req, err := http.NewRequestWithContext(ctx, method, base+"/v1/internal/node/"+r.identity.ID+"/"+what, body)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", what, err)
	}
	req.Header.Set("X-Rockpool-Node-Secret", r.identity.Secret)
	if r.token != "" {
		req.Header.Set("X-Nomad-Token", r.token)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.turn()
		return nil, fmt.Errorf("node %s: %w", what, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	if resp.StatusCode >= 500 {
		r.turn()
	}
	return nil, fault.New(kindOf(resp.StatusCode), "node %s: the server answered %d: %s", what, resp.StatusCode, strings.TrimSpace(string(text)))
}

// turn goes on to the next server.
func (r *Remote) turn() { r.current.Add(1) }

func kindOf(status int) fault.Kind {
	switch status {
	case http.StatusNotFound:
		return fault.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Forbidden
	case http.StatusConflict:
		return fault.Conflict
	case http.StatusRequestEntityTooLarge:
		return fault.TooLarge
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return fault.Invalid
	}
	return fault.Unavailable
}
