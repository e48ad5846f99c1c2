package session

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/lifecycle"
	"rockpool/internal/runner/execution"
)

// Dialer opens connections to other gateways.
type Dialer struct{ TLS *tls.Config }

// Refusal is the answer of a gateway that did not upgrade.
type Refusal struct {
	Status int
	Body   []byte // JSON of the contract, at most 64 KB
}

func (r *Refusal) Error() string { return http.StatusText(r.Status) }

// IsHandshake reports whether Upgrade will take a request over, as far as that can be told before another gateway is asked for it: there the execution
// is consumed.
func IsHandshake(r *http.Request) bool {
	return r.Method == http.MethodGet && websocket.IsWebSocketUpgrade(r) && r.Header.Get("Sec-Websocket-Version") == "13" &&
		r.Header.Get("Sec-Websocket-Key") != "" && sameOrigin(r)
}

func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}

// Dial connects to the same path of another gateway as the client would, with header. An answer other than an upgrade is a *Refusal.
func (d Dialer) Dial(ctx context.Context, base string, r *http.Request, header http.Header) (*Conn, error) {
	dialer := websocket.Dialer{
		HandshakeTimeout: 10 * time.Second, ReadBufferSize: 8192, WriteBufferSize: 4096, TLSClientConfig: d.TLS, Subprotocols: websocket.Subprotocols(r),
	}
	conn, resp, err := dialer.DialContext(ctx, strings.Replace(base, "http", "ws", 1)+r.URL.RequestURI(), header)
	if err == nil {
		return conn, nil
	}
	if resp != nil && errors.Is(err, websocket.ErrBadHandshake) {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return nil, &Refusal{resp.StatusCode, body}
	}
	return nil, err
}

// Relay passes everything on between a client and the gateway where its execution runs, until either closes or ctx ends, and closes both. Nothing is
// buffered beyond one piece of a frame in each direction.
func Relay(ctx context.Context, client, peer *Conn) {
	defer client.Close()
	defer peer.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Pings and pongs go through, so that each end finds out about the other.
	forward := func(kind int, to *Conn) func(string) error {
		return func(data string) error {
			if ctx.Err() != nil {
				return nil // the linger deadline holds
			}
			_ = peer.SetReadDeadline(time.Now().Add(pongTime))
			err := to.WriteControl(kind, []byte(data), time.Now().Add(writeTime))
			if errors.Is(err, websocket.ErrCloseSent) {
				return nil
			}
			return err
		}
	}
	peer.SetPingHandler(forward(websocket.PingMessage, client))
	client.SetPongHandler(forward(websocket.PongMessage, peer))
	client.SetPingHandler(forward(websocket.PingMessage, peer))
	peer.SetPongHandler(forward(websocket.PongMessage, client))
	for _, c := range []*Conn{client, peer} {
		c.SetCloseHandler(func(int, string) error { return nil }) // it is passed on
	}
	_ = peer.SetReadDeadline(time.Now().Add(pongTime))

	r := &relay{client: client}
	var both sync.WaitGroup
	run := func(f func() error) {
		both.Go(func() { cancel(errors.Join(errPassed, lifecycle.Guard(f))) })
	}
	run(func() error { return r.toClient(peer) })
	run(func() error { return pass(client, peer) })
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), errPassed) {
		// This gateway stops. Who may come again does so through another one.
		r.finish(final(execution.Outcome{Kind: execution.Failed, Err: context.Cause(ctx)}, client.Subprotocol() == Protocol))
	}
	// Whatever has ended first, the other end hears of it, and has a moment to answer.
	until := time.Now().Add(lingerTime)
	_ = client.SetReadDeadline(until)
	_ = peer.SetReadDeadline(until)
	_ = peer.NetConn().SetWriteDeadline(until) // input may be waiting for its program
	both.Wait()
}

var errPassed = errors.New("a side has ended")

type relay struct {
	client *Conn

	mu     sync.Mutex // one message at a time
	spoken bool       // the first one has come
	kept   bool       // the client may come again to its execution
	over   bool       // the client has got its last one
}

// toClient passes the messages of the other gateway on. If it dies the client is told: its execution is lost. One that may come again finds out itself.
func (r *relay) toClient(peer *Conn) error {
	for {
		kind, data, err := peer.NextReader()
		if err != nil {
			if e, ok := errors.AsType[*websocket.CloseError](err); ok && e.Code != websocket.CloseAbnormalClosure {
				r.close(e.Code)
				return nil
			}
			r.finish(final(execution.Outcome{Kind: execution.Failed, Err: err}, r.client.Subprotocol() == Protocol))
			return err
		}
		_ = peer.SetReadDeadline(time.Now().Add(pongTime))
		if err := r.message(kind, data); err != nil {
			return err
		}
	}
}

// message copies one, which may be of any size.
func (r *relay) message(kind int, data io.Reader) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return websocket.ErrCloseSent
	}
	if !r.spoken {
		first, err := io.ReadAll(io.LimitReader(data, maxControl))
		if err != nil {
			return err
		}
		var g greeting
		r.spoken, r.kept = true, json.Unmarshal(first, &g) == nil && g.Reattach != nil
		data = io.MultiReader(bytes.NewReader(first), data)
	}
	_ = r.client.SetWriteDeadline(time.Now().Add(writeTime))
	w, err := r.client.NextWriter(kind)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, data); err != nil {
		r.over = true // in the middle of a message nothing else can be said
		return err
	}
	return w.Close()
}

// finish sends a last message and Close. To a client that may come again this is a connection that breaks: its execution may go on elsewhere.
func (r *relay) finish(last []byte) {
	r.mu.Lock()
	if r.kept {
		r.over = true
		_ = r.client.NetConn().Close()
	}
	if !r.over && last != nil {
		_ = r.client.SetWriteDeadline(time.Now().Add(writeTime))
		_ = r.client.WriteMessage(websocket.TextMessage, last)
	}
	r.mu.Unlock()
	r.close(websocket.CloseNormalClosure)
}

func (r *relay) close(code int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.over = true
	_ = r.client.WriteControl(websocket.CloseMessage, closing(code), time.Now().Add(writeTime))
}

// closing is the payload of a Close frame; the code that stands for none is not sent.
func closing(code int) []byte {
	if code == websocket.CloseNoStatusReceived {
		return websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	}
	return websocket.FormatCloseMessage(code, "")
}

// pass copies what the client sends, and its Close.
func pass(client, peer *Conn) error {
	for {
		kind, data, err := client.NextReader()
		if err != nil {
			e, ok := errors.AsType[*websocket.CloseError](err)
			if !ok || e.Code == websocket.CloseAbnormalClosure {
				_ = peer.NetConn().Close() // it has left without a word: the other gateway sees the same
				return err
			}
			_ = peer.WriteControl(websocket.CloseMessage, closing(e.Code), time.Now().Add(writeTime))
			return err
		}
		// How long a program leaves its input unread is not for us to judge: the other gateway has its own deadlines.
		_ = peer.SetWriteDeadline(time.Time{})
		w, err := peer.NextWriter(kind)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, data); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
	}
}
