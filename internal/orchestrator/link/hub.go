package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/wire"
)

// ProbePath is what a node's handler answers with 200 to say that it lives.
const ProbePath = "/v1/internal/probe"

// ErrNoPath says that this server has no connection to a node. The text is Nomad's.
var ErrNoPath = fault.New(fault.NotFound, "No path to node")

// Hub is a server's end: it knows the connections of nodes.
type Hub struct {
	mu      sync.Mutex
	nodes   map[string]*connection
	localID string
	local   http.Handler
}

// connection is one of a node.
type connection struct {
	session *yamux.Session
	proxy   *httputil.ReverseProxy
	idle    *http.Transport
	streams chan struct{} // one per request under way
	end     func()        // closes it
}

// NewHub makes a hub without connections.
func NewHub() *Hub { return &Hub{nodes: map[string]*connection{}} }

// SetLocal makes a node reachable that runs in this process.
func (h *Hub) SetLocal(nodeID string, handler http.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.localID, h.local = nodeID, handler
}

// Local is the id of the node in this process, or "".
func (h *Hub) Local() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.localID
}

// Nodes are the ids of the nodes that can be reached from here, sorted, that of this process first.
func (h *Hub) Nodes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]string, 0, len(h.nodes)+1)
	for id := range h.nodes {
		if id != h.localID {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if h.local != nil {
		ids = slices.Insert(ids, 0, h.localID)
	}
	return ids
}

// To is what serves requests on a node. The error is ErrNoPath where there is no connection.
func (h *Hub) To(nodeID string) (http.Handler, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.local != nil && nodeID == h.localID {
		return h.local, nil
	}
	if c := h.nodes[nodeID]; c != nil {
		return c, nil
	}
	return nil, ErrNoPath
}

// Probe asks a node for a sign of life. nil means that its agent answered.
func (h *Hub) Probe(ctx context.Context, nodeID string) error {
	h.mu.Lock()
	c, here := h.nodes[nodeID], h.local != nil && nodeID == h.localID
	h.mu.Unlock()
	switch {
	case here:
		return nil
	case c == nil:
		return ErrNoPath
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+ProbePath, nil)
	if err != nil {
		return fmt.Errorf("probe node: %w", err)
	}
	resp, err := c.idle.RoundTrip(r)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the node does not answer")
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 4096)); err != nil || resp.StatusCode != http.StatusOK {
		return fault.New(fault.Unavailable, "the node answers a probe with status %d", resp.StatusCode)
	}
	return nil
}

// Serve holds the connection of a node that has proved to be nodeID, until it ends or ctx does. It closes conn.
func (h *Hub) Serve(ctx context.Context, nodeID string, conn io.ReadWriteCloser) error {
	session, err := yamux.Client(&watched{ReadWriteCloser: conn}, settings())
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("connection of node: %w", err)
	}
	defer session.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer unhook()
	c := connect(session)
	c.end = cancel
	defer c.idle.CloseIdleConnections()
	h.mu.Lock()
	h.nodes[nodeID] = c
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.nodes[nodeID] == c {
			delete(h.nodes, nodeID)
		}
	}()
	// A node has nothing to ask here: no stream comes, but the end does.
	_, err = session.AcceptStream()
	if ctx.Err() != nil || errors.Is(err, io.EOF) || session.IsClosed() {
		return nil
	}
	return fmt.Errorf("connection of node: %w", err)
}

func connect(s *yamux.Session) *connection {
	t := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return s.OpenStream() },
		MaxIdleConns:    64,
		IdleConnTimeout: 30 * time.Second, DisableCompression: true, MaxResponseHeaderBytes: headBytes, WriteBufferSize: 32 << 10, ReadBufferSize: 32 << 10,
	}
	t.MaxIdleConnsPerHost = t.MaxIdleConns
	return &connection{session: s, idle: t, streams: make(chan struct{}, maxStreams), proxy: &httputil.ReverseProxy{
		Transport: plain{t}, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), // what it would say there is told to the client
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", "node", "node"
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
				wire.WriteError(w, fault.New(fault.TooLarge, "the request body is larger than %d bytes", tooLarge.Limit))
				return
			}
			wire.WriteError(w, fault.Wrap(fault.Unavailable, err, "the connection to the node ended before it answered"))
		},
	}}
}

// ServeHTTP sends a request to the node and its answer back.
func (c *connection) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case c.streams <- struct{}{}:
		defer func() { <-c.streams }()
	default:
		wire.WriteError(w, fault.New(fault.Exhausted, "the node carries %d requests for this server already", maxStreams))
		return
	}
	c.proxy.ServeHTTP(w, r)
}
