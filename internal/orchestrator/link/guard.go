package link

import (
	"encoding/binary"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/timeline"
)

// What a server takes from a node that somebody has taken over. It speaks for the allocations that it runs, and for nothing else: neither may it cost a server
// memory, nor speak to clients as if it were one.

const (
	headBytes = 64 << 10 // of the head of an answer, 1xx answers and trailers with it
	// maxPings is how many pings a node may send within [silence]. It sends one; each costs a goroutine until its answer is written.
	maxPings = 64
)

// frames of yamux, version 0: https://github.com/hashicorp/yamux/blob/master/spec.md.
const (
	frameHead = 12 // bytes: version, type, flags (2), stream (4), length (4)
	frameData = 0
	framePing = 2
	flagSYN   = 1
)

// watched is a node's connection whose frames are looked at before anything is kept for them. A stream that a node opens ends it, for there is nothing that it
// could ask, and so does a flood of pings.
type watched struct {
	io.ReadWriteCloser
	head  [frameHead]byte
	have  int    // bytes of head
	skip  uint32 // bytes of data that are left of the frame
	pings int
	since time.Time
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadWriteCloser.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if w.skip > 0 {
			k := min(uint64(len(rest)), uint64(w.skip))
			w.skip -= uint32(k)
			rest = rest[k:]
			continue
		}
		k := copy(w.head[w.have:], rest)
		w.have += k
		rest = rest[k:]
		if w.have < frameHead {
			break
		}
		w.have = 0
		if why := w.frame(time.Now); why != nil {
			return 0, why
		}
	}
	return n, err
}

// frame looks at a complete head.
func (w *watched) frame(now func() time.Time) error {
	kind, syn := w.head[1], binary.BigEndian.Uint16(w.head[2:])&flagSYN != 0
	switch {
	case kind == framePing && syn:
		if t := now(); t.Sub(w.since) > silence {
			w.since, w.pings = t, 0
		}
		if w.pings++; w.pings > maxPings {
			return fault.New(fault.Invalid, "the node sends more than %d pings within %v", maxPings, silence)
		}
	case kind == framePing:
	case syn:
		return fault.New(fault.Invalid, "the node opens a stream, and only servers do")
	}
	if kind == frameData {
		w.skip = binary.BigEndian.Uint32(w.head[8:])
	}
	return nil
}

// passed are the headers of a node's answer that clients get. Whatever else there is would speak for the server: cookies, redirects, other origins.
var passed = []string{
	"Cache-Control", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Retry-After", "Sec-Websocket-Accept",
	"Sec-Websocket-Extensions", "Sec-Websocket-Protocol", "Upgrade", "Vary",
}

// types are the media types of a node's answers. What claims to be another is bytes, so that no browser takes it for a page.
var types = map[string]bool{"application/json": true, "application/octet-stream": true, "text/plain": true}

// plain makes of what a node says the answer of a node.
type plain struct{ *http.Transport }

func (t plain) RoundTrip(r *http.Request) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
		trace.Got1xxResponse = nil // the proxy would pass on answers before the answer
	}
	resp, err := t.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if c := resp.StatusCode; c >= 300 && c < 400 || c > 599 {
		_ = resp.Body.Close()
		return nil, fault.New(fault.Unavailable, "the node answers with status %d", c)
	}
	timeline.From(r.Context()).Import(resp.Header.Get(timeline.HeaderSteps), time.Time{})
	out := *resp // a copy, so that trailers stay with the original
	out.Trailer, out.Header = nil, make(http.Header, len(passed))
	for _, k := range passed {
		if v, ok := resp.Header[k]; ok {
			out.Header[k] = v
		}
	}
	if kind := resp.Header.Get("Content-Type"); kind != "" {
		if k, _, err := mime.ParseMediaType(kind); err != nil || !types[k] {
			kind = "application/octet-stream"
		}
		out.Header.Set("Content-Type", kind)
	}
	return &out, nil
}

// Drop ends the connection of a node that is none any more.
func (h *Hub) Drop(nodeID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.nodes[nodeID]; c != nil {
		c.end()
		delete(h.nodes, nodeID)
	}
}
