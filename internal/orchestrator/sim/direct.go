package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"rockpool/internal/lifecycle"
)

// Direct is a transport of HTTP that calls a handler in this process: everything of a request but the network. Thousands of nodes need no sockets, and a
// synctest bubble no network.
type Direct struct {
	Handler http.Handler
	tasks   lifecycle.Tasks
}

// RoundTrip calls the handler in a goroutine of its own and returns when it has written its header.
func (d *Direct) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	in.RequestURI, in.RemoteAddr = r.URL.RequestURI(), "192.0.2.1:1"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	p := &pipe{header: http.Header{}, begun: make(chan struct{})}
	p.more.L = &p.mu
	if !d.tasks.Go(func() {
		defer in.Body.Close()
		d.Handler.ServeHTTP(p, in)
		p.end(io.EOF)
	}) {
		return nil, errors.New("the simulated network is closed")
	}
	select {
	case <-p.begun:
	case <-r.Context().Done():
		p.end(r.Context().Err())
		return nil, r.Context().Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &http.Response{
		Status: http.StatusText(p.status), StatusCode: p.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: p.sent,
		Body: &pipeReader{p: p, stop: context.AfterFunc(r.Context(), func() { p.end(r.Context().Err()) })}, ContentLength: -1, Request: r,
	}, nil
}

// Wait waits for the handlers under way. No further request is taken.
func (d *Direct) Wait(ctx context.Context) error { return d.tasks.Wait(ctx) }

// pipe is an answer on its way: the handler writes, the client reads. It holds what was written and not read yet, up to maxHeld bytes.
type pipe struct {
	header http.Header // the handler's
	begun  chan struct{}

	mu     sync.Mutex
	more   sync.Cond
	status int          // guarded by mu; 0 = not written
	sent   http.Header  // guarded by mu; as it was when the status was written
	held   bytes.Buffer // guarded by mu
	err    error        // guarded by mu; set by whoever ended it first
}

const maxHeld = 1 << 20

func (p *pipe) Header() http.Header { return p.header }

func (p *pipe) WriteHeader(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == 0 {
		p.status, p.sent = status, p.header.Clone()
		close(p.begun)
	}
}

func (p *pipe) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held.Len() > maxHeld && p.err == nil {
		p.more.Wait()
	}
	if p.err != nil {
		return 0, p.err
	}
	p.more.Broadcast()
	return p.held.Write(b)
}

// FlushError has nothing to do: what is written can be read at once.
func (p *pipe) FlushError() error { p.WriteHeader(http.StatusOK); return nil }

func (p *pipe) end(err error) {
	p.WriteHeader(http.StatusOK)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.more.Broadcast()
}

type pipeReader struct {
	p    *pipe
	stop func() bool
}

func (r *pipeReader) Read(b []byte) (int, error) {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held.Len() == 0 && p.err == nil {
		p.more.Wait()
	}
	if p.held.Len() == 0 {
		return 0, p.err
	}
	p.more.Broadcast()
	return p.held.Read(b)
}

func (r *pipeReader) Close() error {
	r.stop()
	r.p.end(io.ErrClosedPipe)
	return nil
}
