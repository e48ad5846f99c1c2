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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
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
	identity Identity
	token    string
	client   *http.Client
	current  atomic.Uint32
	dense    atomic.Bool // the server reads packed reports

	mu      sync.Mutex
	given   []string      // the addresses that it was made with
	addrs   []string      // those that are used: of all servers, as they last said, or the given ones
	changed chan struct{} // closed when addrs is replaced
}

// NewRemote makes a connection to the servers at addrs, such as https://10.0.0.1:4646. A token is needed only where the servers
// want one to register. The client must have no timeout of its own.
func NewRemote(addrs []string, identity Identity, token string, client *http.Client) (*Remote, error) {
	if len(addrs) == 0 {
		return nil, errors.New("connect to servers: no address is given")
	}
	r := &Remote{identity: identity, token: token, client: client, changed: make(chan struct{})}
	for _, a := range addrs {
		u, err := url.Parse(a)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("connect to servers: %q is not an http or https address", a)
		}
		r.given = append(r.given, strings.TrimRight(a, "/"))
	}
	r.addrs = r.given
	return r, nil
}

// Servers are the addresses of the servers as they are known now, and a channel that is closed when others are.
func (r *Remote) Servers() (addrs []string, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addrs, r.changed
}

// learn takes over what the servers say about each other. The one that is spoken to now stays the one.
func (r *Remote) learn(addrs []string) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		u, err := url.Parse(a)
		return err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https"
	})
	slices.Sort(addrs)
	if addrs = slices.Compact(addrs); len(addrs) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(addrs, r.addrs) {
		return
	}
	now := r.addrs[int(r.current.Load())%len(r.addrs)]
	if i := slices.Index(addrs, now); i >= 0 {
		r.current.Store(uint32(i))
	}
	r.addrs = addrs
	close(r.changed)
	r.changed = make(chan struct{})
}

// server is the address to ask now. When all that were learned have failed in turn, the given ones have theirs: the whole cluster may have moved.
func (r *Remote) server() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.addrs)
	for _, a := range r.given {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all[int(r.current.Load())%len(all)]
}

// Connect opens the node's own connection to a server, over which that one sends requests for allocations.
func (r *Remote) Connect(ctx context.Context, addr string) (io.ReadWriteCloser, error) {
	req, err := r.request(ctx, http.MethodGet, addr, "connection", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", link.Protocol)
	// The answer's body is the connection, which outlives the opening: only that is bounded.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil) // net/http watches the context no more once the connection was handed over
	late := time.AfterFunc(callTimeout, func() { cancel(fault.New(fault.Deadline, "the server did not answer within %v", callTimeout)) })
	defer late.Stop()
	resp, err := r.client.Do(req.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to server: %w", err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if conn, ok := resp.Body.(io.ReadWriteCloser); ok {
			return conn, nil
		}
	}
	defer resp.Body.Close()
	return nil, refused(resp, "connection")
}

// Register makes the node known.
func (r *Remote) Register(ctx context.Context, n *model.Node) (lease model.NodeLease, err error) {
	err = r.call(ctx, http.MethodPut, "register", n, &lease)
	r.dense.Store(lease.Packed)
	r.learn(lease.Servers)
	return lease, err
}

// Heartbeat tells that the node lives.
func (r *Remote) Heartbeat(ctx context.Context) (lease model.NodeLease, err error) {
	err = r.call(ctx, http.MethodPut, "heartbeat", nil, &lease)
	r.dense.Store(lease.Packed)
	r.learn(lease.Servers)
	return lease, err
}

// UpdateAllocations reports states.
func (r *Remote) UpdateAllocations(ctx context.Context, updates []model.AllocUpdate) error {
	if r.dense.Load() {
		list := make([]*model.AllocUpdate, len(updates))
		for i := range updates {
			list[i] = &updates[i]
		}
		b, err := packed.Reports(list)
		if err != nil {
			return fmt.Errorf("pack reports: %w", err)
		}
		if err := r.call(ctx, http.MethodPut, "allocations", b, nil); !fault.Is(err, fault.Invalid) {
			return err
		}
		r.dense.Store(false) // it may have been an older server than the one that was asked
	}
	return r.call(ctx, http.MethodPut, "allocations", updates, nil)
}

// UpdateServices tells what allocations offer.
func (r *Remote) UpdateServices(ctx context.Context, services []model.AllocServices) error {
	return r.call(ctx, http.MethodPut, "services", services, nil)
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
		var in struct {
			model.AllocPush
			Packed []byte
		}
		bounded.N = maxMessage
		if err := lines.Decode(&in); err != nil {
			r.turn()
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("read stream of changes: %w", err)
		}
		p := in.AllocPush
		if p.Generation == 0 && !p.Full {
			continue // a sign of life
		}
		if in.Packed != nil {
			if p.Allocs, err = packed.ReadAllocs(in.Packed, packed.ReadJob); err != nil {
				return fmt.Errorf("read stream of changes: %w", err)
			}
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
	req, err := r.request(ctx, method, r.server(), what, body)
	if err != nil {
		return nil, err
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
	if resp.StatusCode >= 500 {
		r.turn()
	}
	return nil, refused(resp, what)
}

// request makes one that proves who the node is.
func (r *Remote) request(ctx context.Context, method, base, what string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, base+"/v1/internal/node/"+r.identity.ID+"/"+what, body)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", what, err)
	}
	req.Header.Set("X-Rockpool-Node-Secret", r.identity.Secret)
	req.Header.Set("Accept", model.PackedType)
	if r.token != "" {
		req.Header.Set("X-Nomad-Token", r.token)
	}
	return req, nil
}

// refused is the error of an answer that is none of the wanted ones.
func refused(resp *http.Response, what string) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	return fault.New(kindOf(resp.StatusCode), "node %s: the server answered %d: %s", what, resp.StatusCode, strings.TrimSpace(string(text)))
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
