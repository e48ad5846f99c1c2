package contract

import (
	"bytes"
	"io"
	"net/http"
)

// keep is how much of a body is held for the check, in bytes. What is longer is checked without its body.
const keep = 64 << 20

// Transport returns a RoundTripper that checks every answer that comes through next, once its body has been read to the end; report is told what is wrong.
func (c *Contract) Transport(next http.RoundTripper, report func(error)) http.RoundTripper {
	return &transport{c, next, report}
}

type transport struct {
	contract *Contract
	next     http.RoundTripper
	report   func(error)
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	b := &body{ReadCloser: resp.Body}
	b.check = func(data []byte) {
		if err := t.contract.Response(r.Method, r.URL, resp.StatusCode, resp.Header, data); err != nil {
			t.report(err)
		}
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		b.check(nil)
		return resp, nil
	}
	resp.Body = b
	return resp, nil
}

// CloseIdleConnections passes the call of http.Client on.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// body checks an answer at its end. One that is cut off is not checked: there is no whole answer then.
type body struct {
	io.ReadCloser
	read  bytes.Buffer
	over  bool // it is too long to be kept
	done  bool
	check func([]byte)
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.over = b.over || b.read.Len()+n > keep; !b.over {
		b.read.Write(p[:n])
	}
	if err == io.EOF && !b.done {
		b.done = true
		if b.over {
			b.check(nil)
		} else {
			b.check(append([]byte{}, b.read.Bytes()...))
		}
	}
	return n, err
}
