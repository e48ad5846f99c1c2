package httpapi

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node/serve"
	"rockpool/internal/timeline"
)

// clientTable is what nodes answer: each row asks for the caller's right here, finds the node and passes the request on, to the handler of the node in
// this process or over the node's own connection to this server. It ends with the connection of a node.
func (a *API) clientTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Stream("node.connection", "GET", "/v1/internal/node/{id}/connection", anywhere(auth.NodeSelf), a.connectNode), // to each server, not to the leader by way of each
	}
	for _, row := range serve.Rows(nil) {
		p := row.Policy
		if p.Body > 0 {
			p.Body++ // the node says that a body is too large, in the way that its route does
		}
		switch {
		case row.Name == serve.Exec:
			t = append(t, endpoint.Stream(row.Name, row.Method, row.Path, p, a.exec))
		case row.Place == serve.OfAllocation:
			t = append(t, endpoint.Stream(row.Name, row.Method, row.Path, p,
				func(w http.ResponseWriter, r *http.Request, _ auth.Identity, req allocPath) error {
					return a.toAllocation(w, r, row.Policy.Scope, req.ID)
				}))
		case row.Place == serve.OfBody:
			t = append(t, endpoint.Stream(row.Name, row.Method, row.Path, p,
				func(w http.ResponseWriter, r *http.Request, _ auth.Identity, req nodeParameter) error {
					return a.toNodeOfBody(w, r, row.Policy.Scope, req)
				}))
		default:
			any := row.Place == serve.OfAnyNode
			t = append(t, endpoint.Stream(row.Name, row.Method, row.Path, p,
				func(w http.ResponseWriter, r *http.Request, _ auth.Identity, req nodeParameter) error {
					return a.toNode(w, r, row.Policy.Scope, req.NodeID, any)
				}))
		}
	}
	return t
}

// connectNode takes the connection over that a node has opened, and holds it until it ends.
func (a *API) connectNode(w http.ResponseWriter, r *http.Request, _ auth.Identity, req nodePath) error {
	switch {
	case a.nodes.Local() == req.ID:
		return answer(http.StatusConflict, "the node is in this server's process: it needs no connection")
	case a.store.Snapshot().Node(nil, req.ID) == nil:
		return a.unknownNode()
	case r.Header.Get("Upgrade") != link.Protocol:
		return fault.New(fault.Invalid, "the connection of a node is upgraded to %s, not to %q", link.Protocol, r.Header.Get("Upgrade"))
	}
	ctx, done, err := a.conns.begin(r.Context(), a.closing)
	if err != nil {
		return err
	}
	defer done()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the connection cannot be taken over")
	}
	_ = conn.SetDeadline(time.Now().Add(silentPeer))
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+link.Protocol+"\r\n\r\n")
	if err != nil {
		_ = conn.Close()
		return nil //nolint:nilerr // the node has gone, and comes again
	}
	_ = conn.SetDeadline(time.Time{})
	return a.nodes.Serve(ctx, req.ID, taken{conn, buffered.Reader})
}

// silentPeer bounds how long a client may take to take, or say, one short thing.
const silentPeer = 10 * time.Second

// taken is a connection that was taken over, with what was read of it before.
type taken struct {
	net.Conn
	buffered *bufio.Reader
}

func (c taken) Read(p []byte) (int, error) { return c.buffered.Read(p) }

type allocPath struct {
	ID string `path:"id"`
}

func (a *API) toAllocation(w http.ResponseWriter, r *http.Request, s auth.Scope, id string) error {
	h, err := a.nodeOfAlloc(id)
	if err != nil {
		return err
	}
	return a.relay(w, r, h, func() bool {
		who, err := a.authenticate(r)
		al := a.store.Snapshot().Alloc(nil, id)
		return err == nil && al != nil && who.MayIn(s, al.Namespace)
	})
}

// nodeOfAlloc is what answers for the node of an allocation.
func (a *API) nodeOfAlloc(id string) (http.Handler, error) {
	al := a.store.Snapshot().Alloc(nil, id)
	if al == nil {
		return nil, fault.New(fault.NotFound, "Unknown allocation %q", id)
	}
	return a.nodes.To(al.NodeID)
}

type nodeParameter struct {
	NodeID string `query:"node_id"`
}

// toNode passes a request on to a node, by default to that of this process. Where any will do, it is one with images.
func (a *API) toNode(w http.ResponseWriter, r *http.Request, s auth.Scope, id string, any bool) error {
	switch {
	case id != "":
		if a.store.Snapshot().Node(nil, id) == nil {
			return fault.New(fault.NotFound, "Unknown node %q", id)
		}
	case any:
		if id = a.imageNode(); id == "" {
			return fault.New(fault.Unsupported, "no node that this server can reach has images that it could ask about")
		}
	case a.nodes.Local() != "":
		id = a.nodes.Local()
	default:
		return fault.New(fault.NotFound, "there is no node in this process: name one with node_id")
	}
	h, err := a.nodes.To(id)
	if err != nil {
		return err
	}
	return a.relay(w, r, h, func() bool {
		who, err := a.authenticate(r)
		return err == nil && who.May(s)
	})
}

// imageNode is a node that can be asked what a reference to an image means; "" = none.
func (a *API) imageNode() string {
	snap := a.store.Snapshot()
	for _, id := range a.nodes.Nodes() {
		if n := snap.Node(nil, id); n != nil && n.Attributes[serve.AttributeImages] == "true" {
			return id
		}
	}
	return ""
}

// toNodeOfBody finds the node in the request's body, which is small.
func (a *API) toNodeOfBody(w http.ResponseWriter, r *http.Request, s auth.Scope, req nodeParameter) error {
	body, err := io.ReadAll(r.Body) // bounded by the row
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the request body could not be read")
	}
	var named struct{ NodeID string }
	if err := json.Unmarshal(body, &named); err != nil {
		return fault.Wrap(fault.Invalid, err, "the request body is not a JSON object")
	}
	if named.NodeID == "" {
		named.NodeID = req.NodeID
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return a.toNode(w, r, s, named.NodeID, false)
}

// relay hands a request to a node and its answer back. The caller's right was asked for, and is asked for again by allowed whenever rights change; its token
// stays here.
func (a *API) relay(w http.ResponseWriter, r *http.Request, h http.Handler, allowed func() bool) error {
	ctx, done, err := a.conns.begin(r.Context(), a.closing)
	if err != nil {
		return err
	}
	defer done()
	ctx, end := a.whileAllowed(ctx, 0, allowed)
	defer end()
	ctx, span := timeline.Start(ctx, timeline.NodeRelay)
	defer span.End()
	out := r.Clone(ctx)
	out.Header.Del(timeline.Header)
	if span != nil {
		out.Header.Set(timeline.Header, span.Traceparent())
	}
	out.Header.Del("X-Nomad-Token")
	out.Header.Del("Authorization")
	h.ServeHTTP(&leased{w, func(c net.Conn) { context.AfterFunc(ctx, func() { _ = c.Close() }) }}, out)
	return nil
}

// leased is an answer whose connection, once it was taken over, is closed as soon as its request ends: a client that does not close its own side holds
// nobody up.
type leased struct {
	http.ResponseWriter
	taken func(net.Conn)
}

func (l *leased) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l *leased) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(l.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	l.taken(c)
	return struct{ net.Conn }{c}, rw, nil // nobody is told that one half of it could be closed alone
}

type execPath struct {
	ID        string        `path:"id"`
	Task      string        `query:"task"`
	Handshake endpoint.Flag `query:"ws_handshake"`
}

// exec asks for the caller's right, which may come in the first message, and passes the WebSocket on. What goes wrong is a close frame.
func (a *API) exec(w http.ResponseWriter, r *http.Request, _ auth.Identity, req execPath) error {
	if !websocket.IsWebSocketUpgrade(r) {
		_, err := serve.Upgrade(w, r)
		return err
	}
	if req.Handshake {
		return a.execAfterHandshake(w, r, req)
	}
	err := a.relayExec(w, r, req)
	if err == nil {
		return nil
	}
	conn, refused := serve.Upgrade(w, r)
	if conn == nil {
		return refused
	}
	defer conn.Close()
	serve.Refuse(conn, err)
	return nil
}

// mayExec asks for the right to run something in a task. In one whose driver has no walls that is the right to run it on the node.
func (a *API) mayExec(r *http.Request, p execPath) error {
	id, err := a.authenticate(r)
	if err != nil {
		return denied()
	}
	al := a.store.Snapshot().Alloc(nil, p.ID)
	if al == nil {
		return require(id, auth.AllocExec, cmp.Or(r.URL.Query().Get("namespace"), model.DefaultNamespace))
	}
	if err := require(id, auth.AllocExec, al.Namespace); err != nil {
		return err
	}
	if g := al.Job.Group(al.TaskGroup); g != nil {
		if t := g.Task(p.Task); t != nil && t.Driver == "raw_exec" {
			return require(id, auth.AllocNodeExec, al.Namespace)
		}
	}
	return nil
}

// relayExec hands an execution to its node. Whoever loses the right loses the terminal that it opened.
func (a *API) relayExec(w http.ResponseWriter, r *http.Request, p execPath) error {
	if err := a.mayExec(r, p); err != nil {
		timeline.From(r.Context()).Discard() // whoever may not do it shall not fill what is kept
		return err
	}
	h, err := a.nodeOfAlloc(p.ID)
	if err != nil {
		return err
	}
	return a.relay(w, r, h, func() bool { return a.mayExec(r, p) == nil })
}

// execAfterHandshake serves browsers, which cannot set a header: the WebSocket is opened here to read the token in its first message, and what comes
// after that is the node's. The node's own answer to the upgrade stays here.
func (a *API) execAfterHandshake(w http.ResponseWriter, r *http.Request, req execPath) error {
	keep := &keeping{ResponseWriter: w}
	conn, err := serve.Upgrade(keep, r)
	if conn == nil {
		return err
	}
	defer conn.Close()
	var hello struct {
		Version   int    `json:"version"`
		AuthToken string `json:"auth_token"`
	}
	_ = conn.SetReadDeadline(time.Now().Add(silentPeer))
	if err := conn.ReadJSON(&hello); err != nil || hello.Version != 1 {
		serve.Refuse(conn, fault.New(fault.Invalid, "failed to decode the handshake message"))
		return nil
	}
	_ = conn.SetReadDeadline(time.Time{})
	r = r.Clone(r.Context())
	r.Header.Set("X-Nomad-Token", hello.AuthToken)
	q := r.URL.Query()
	q.Del("ws_handshake")
	r.URL.RawQuery = q.Encode()
	if err := a.relayExec(&answered{header: http.Header{}, conn: &headless{Conn: taken{keep.conn, keep.buffered.Reader}}}, r, req); err != nil {
		serve.Refuse(conn, err)
	}
	return nil
}

// keeping remembers the connection that was taken over, and the reader that holds what was read of it.
type keeping struct {
	http.ResponseWriter
	conn     net.Conn
	buffered *bufio.ReadWriter
}

func (k *keeping) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	var err error
	k.conn, k.buffered, err = http.NewResponseController(k.ResponseWriter).Hijack()
	return k.conn, k.buffered, err
}

// answered is the response to a request whose connection was taken over before: nothing but that connection can be had of it.
type answered struct {
	header http.Header
	conn   *headless
}

func (w *answered) Header() http.Header         { return w.header }
func (w *answered) WriteHeader(int)             {}
func (w *answered) Write(p []byte) (int, error) { return 0, http.ErrHijacked }

func (w *answered) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}

// headless drops the head of the response that is written first: its client has had one.
type headless struct {
	net.Conn
	seen []byte // the last bytes of the head; nil once it has passed
	past bool
}

func (h *headless) Write(p []byte) (int, error) {
	n := len(p)
	if !h.past {
		joined := append(h.seen, p...)
		end := bytes.Index(joined, []byte("\r\n\r\n"))
		if end < 0 {
			h.seen = joined[max(len(joined)-3, 0):]
			return n, nil
		}
		h.past, p = true, joined[end+4:]
		if len(p) == 0 {
			return n, nil
		}
	}
	if _, err := h.Conn.Write(p); err != nil {
		return 0, err
	}
	return n, nil
}
