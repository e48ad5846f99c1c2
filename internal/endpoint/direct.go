package endpoint

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"rockpool/internal/lifecycle"
)

// Direct is a transport of HTTP that calls a handler of this process: everything of a request but the connection. Nothing is copied through the kernel,
// compressed, or handed from one connection's goroutine to the next, and nothing of the caller's context but its end reaches the handler, as on a
// network. What needs the connection itself, such as a WebSocket, cannot be done with it.
type Direct struct {
	Handler http.Handler

	tasks lifecycle.Tasks
	mu    sync.Mutex
	over  bool                   // no further request is taken
	under map[*exchange]struct{} // requests under way
}

// errDirect says that the handler's server does not run any more. It is an error of the network to whoever asks.
var errDirect error = &net.OpError{Op: "dial", Net: "direct", Err: net.ErrClosed}

const (
	directHeld  = 1 << 20  // bytes of an answer that wait for their reader, at most
	directBegin = 32 << 10 // bytes of an answer before it begins although nobody has flushed it
)

// RoundTrip calls the handler in a goroutine of its own and returns when its answer begins: with the first flush, with much of a body, or at its end.
func (d *Direct) RoundTrip(r *http.Request) (*http.Response, error) {
	x := &exchange{header: http.Header{}, begun: make(chan struct{}), head: r.Method == http.MethodHead}
	x.more.L = &x.mu
	ctx, cancel := context.WithCancelCause(context.Background())
	x.cancel = cancel
	in := served(ctx, r)
	if !d.begin(x) {
		_ = in.Body.Close()
		cancel(nil)
		return nil, errDirect
	}
	stop := context.AfterFunc(r.Context(), func() { x.cut(context.Cause(r.Context())) })
	if !d.tasks.Go(func() {
		defer d.end(x)
		defer cancel(nil)
		defer in.Body.Close()
		x.end(d.call(x, in))
	}) {
		d.end(x)
		stop()
		_ = in.Body.Close()
		cancel(nil)
		return nil, errDirect
	}
	<-x.begun
	return x.response(r, stop)
}

// call runs the handler. An aborted one cuts its answer, as in a server of net/http; so does one that panics.
func (d *Direct) call(x *exchange, in *http.Request) (err error) {
	aborted := false
	err = lifecycle.Guard(func() error {
		defer func() {
			if v := recover(); v == http.ErrAbortHandler { //nolint:errorlint // the value itself is panicked with
				aborted = true
			} else if v != nil {
				panic(v)
			}
		}()
		d.Handler.ServeHTTP(x, in)
		return nil
	})
	switch {
	case aborted:
		return io.ErrUnexpectedEOF
	case err != nil:
		return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return io.EOF
}

func (d *Direct) begin(x *exchange) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return false
	}
	if d.under == nil {
		d.under = map[*exchange]struct{}{}
	}
	d.under[x] = struct{}{}
	return true
}

func (d *Direct) end(x *exchange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.under, x)
}

// Cut ends the contexts of all requests under way, as the end of a server does. No further request is taken.
func (d *Direct) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for x := range d.under {
		x.cancel(errDirect)
	}
}

// Wait waits for the handlers under way. No further request is taken.
func (d *Direct) Wait(ctx context.Context) error { return d.tasks.Wait(ctx) }

// served is a request as its server sees it.
func served(ctx context.Context, r *http.Request) *http.Request {
	in := r.WithContext(ctx)
	in.Header = r.Header.Clone()
	if in.Header == nil {
		in.Header = http.Header{}
	}
	in.Header.Del("Accept-Encoding") // between the two ends of one process there is nothing to save
	in.RequestURI, in.RemoteAddr, in.Host = r.URL.RequestURI(), "127.0.0.1:0", cmp.Or(r.Host, r.URL.Host)
	in.URL = &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}
	in.Proto, in.ProtoMajor, in.ProtoMinor, in.Close = "HTTP/1.1", 1, 1, false
	switch {
	case in.Body == nil:
		in.Body = http.NoBody
	case in.Body != http.NoBody && in.ContentLength == 0:
		in.ContentLength = -1 // a client's zero says that it is not known
	}
	return in
}

// exchange is an answer on its way: the handler writes, the client reads.
type exchange struct {
	header http.Header // the handler's
	begun  chan struct{}
	head   bool // the request is HEAD: its answer has no body
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	more    sync.Cond
	started bool         // begun is closed
	flushed bool         // by the handler, which has fixed status and header then
	status  int          // 0 = not written
	sent    http.Header  // as it was when the status was written
	held    bytes.Buffer // written and not read
	length  int64        // of the body, as the header tells it; -1 = it does not
	wrote   int64        // of the body so far
	done    bool         // all of the body is written
	err     error        // what ended it first; io.EOF where the handler has
	due     time.Time    // for a reader to make room; zero = any time
}

// Header is the header of the answer, until it is written.
func (x *exchange) Header() http.Header { return x.header }

// WriteHeader fixes the status and the header.
func (x *exchange) WriteHeader(status int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fix(status)
}

func (x *exchange) fix(status int) {
	if x.status != 0 || status < http.StatusOK { // an answer before the answer says nothing here
		return
	}
	x.status, x.sent, x.length = status, x.header.Clone(), -1
	if n, err := strconv.ParseInt(x.sent.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		x.length = n
	}
}

// bodiless reports whether the answer has no body, whatever is written.
func (x *exchange) bodiless() bool {
	return x.head || x.status == http.StatusNoContent || x.status == http.StatusNotModified
}

func (x *exchange) start() {
	if !x.started {
		x.started = true
		close(x.begun)
	}
}

// Write waits while the reader is far behind.
func (x *exchange) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fix(http.StatusOK)
	if x.bodiless() {
		return len(b), nil
	}
	if x.length >= 0 && x.wrote+int64(len(b)) > x.length {
		return 0, http.ErrContentLength
	}
	n := 0
	for {
		for x.held.Len() >= directHeld && x.err == nil {
			if err := x.wait(); err != nil {
				return n, err
			}
		}
		if x.err != nil {
			return n, x.err
		}
		part := b[n:min(len(b), n+directHeld-x.held.Len())]
		_, _ = x.held.Write(part) // it takes everything
		n += len(part)
		x.wrote += int64(len(part))
		if x.started {
			x.more.Broadcast()
		} else if x.held.Len() >= directBegin {
			x.flushed = true
			x.start()
		}
		if n == len(b) {
			return n, nil
		}
	}
}

// wait is one wait for a change, until due.
func (x *exchange) wait() error {
	if x.due.IsZero() {
		x.more.Wait()
		return nil
	}
	left := time.Until(x.due)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	t := time.AfterFunc(left, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.more.Broadcast()
	})
	defer t.Stop()
	x.more.Wait()
	return nil
}

// SetWriteDeadline bounds how long writes wait for the reader.
func (x *exchange) SetWriteDeadline(t time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.due = t
	x.more.Broadcast()
	return nil
}

// FlushError has the answer begin. What is written after that can be read at once.
func (x *exchange) FlushError() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fix(http.StatusOK)
	x.flushed = true
	x.start()
	return nil
}

// end is the handler's.
func (x *exchange) end(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if errors.Is(err, io.EOF) {
		x.fix(http.StatusOK)
		if x.done = x.bodiless() || x.length < 0 || x.wrote == x.length; !x.done {
			x.flushed, err = true, io.ErrUnexpectedEOF // it must not look complete
		}
	}
	x.finish(err)
}

// cut is the reader's.
func (x *exchange) cut(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.finish(err)
	x.cancel(err)
}

// finish leaves the handler's header alone, which the handler may be writing.
func (x *exchange) finish(err error) {
	if x.err == nil {
		x.err = err
	}
	x.start()
	x.more.Broadcast()
}

func (x *exchange) response(r *http.Request, stop func() bool) (*http.Response, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.flushed && !x.done {
		stop()
		x.cancel(x.err)
		return nil, x.err
	}
	length := x.length
	if length < 0 && x.done && !x.head {
		length = int64(x.held.Len())
	}
	if x.done { // the caller's end changes nothing any more
		stop()
	}
	return &http.Response{
		Status: strconv.Itoa(x.status) + " " + http.StatusText(x.status), StatusCode: x.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: x.sent, Body: &exchangeBody{x, stop}, ContentLength: length, Request: r,
	}, nil
}

// exchangeBody is the client's end.
type exchangeBody struct {
	x    *exchange
	stop func() bool
}

func (b *exchangeBody) Read(p []byte) (int, error) {
	x := b.x
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.held.Len() == 0 && x.err == nil {
		x.more.Wait()
	}
	if x.held.Len() == 0 {
		return 0, x.err
	}
	x.more.Broadcast()
	return x.held.Read(p)
}

// Close gives up what was not read. A handler that still writes is told.
func (b *exchangeBody) Close() error {
	b.stop()
	b.x.cut(io.ErrClosedPipe)
	return nil
}
