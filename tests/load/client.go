package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
)

// Client makes calls of HTTP/1.1 to one server, over connections that it keeps, as many as there are calls under way. A call is written and its answer read by the goroutine that
// makes it: net/http has two more for each connection and hands every call to and fro between the three, which takes longer than the rest of it. The client shares
// the processors with what is measured.
type Client struct {
	addr string
	ctx  context.Context // ends the connections

	mu   sync.Mutex
	idle []*conn // guarded by mu; the one used last is the next to be used
}

type conn struct {
	net.Conn
	answers *bufio.Reader
	request []byte // kept for its memory
	stop    func() bool
}

// NewClient is for the server at a URL (http://host:port). Calls fail when ctx ends, and so do those under way; no connection outlives it.
func NewClient(ctx context.Context, address string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Port() == "" || *u != (url.URL{Scheme: "http", Host: u.Host}) {
		return nil, fmt.Errorf("%s: not of the form http://host:port", address)
	}
	return &Client{addr: u.Host, ctx: ctx}, nil
}

// Do sends JSON and returns the status and the body of the answer. A connection whose call failed is not used again.
func (c *Client) Do(method, path string, body []byte) (status int, answer []byte, err error) {
	n, err := c.take()
	if err != nil {
		return 0, nil, err
	}
	status, answer, keep, err := n.do(method, c.addr, path, body)
	if err != nil || !keep {
		n.stop()
		n.Close()
		return status, answer, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, n)
	return status, answer, nil
}

func (c *Client) take() (*conn, error) {
	c.mu.Lock()
	if last := len(c.idle) - 1; last >= 0 {
		defer c.mu.Unlock()
		n := c.idle[last]
		c.idle = c.idle[:last]
		return n, nil
	}
	c.mu.Unlock()
	var d net.Dialer
	n, err := d.DialContext(c.ctx, "tcp", c.addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: n, answers: bufio.NewReader(n), stop: context.AfterFunc(c.ctx, func() { n.Close() })}, nil
}

func (n *conn) do(method, host, path string, body []byte) (status int, answer []byte, keep bool, err error) {
	n.request = fmt.Appendf(n.request[:0], "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method, path, host, len(body))
	n.request = append(n.request, body...)
	if _, err := n.Write(n.request); err != nil {
		return 0, nil, false, err
	}
	resp, err := http.ReadResponse(n.answers, nil)
	if err != nil {
		return 0, nil, false, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, !resp.Close, err
}
