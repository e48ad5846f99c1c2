package contract

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// Dial returns a function for a WebSocket dialer's NetDialContext whose connections check the answer to the handshake and every message of the gateway, and their
// order, as the bytes come by. It is for connections without TLS. report is told what is wrong.
func (c *Contract) Dial(report func(error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &tap{Conn: conn, contract: c, report: report}, nil
	}
}

// tap reads along. One goroutine writes the handshake before another one reads, as WebSocket clients do.
type tap struct {
	net.Conn
	contract *Contract
	report   func(error)

	path     *url.URL // of the handshake
	upgraded bool
	broken   bool // something was wrong: what follows is not looked at
	extended bool
	buf      []byte
	message  []byte
	started  bool
	final    string
	texts    int
}

func (t *tap) Write(p []byte) (int, error) {
	if t.path == nil {
		if r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(p))); err == nil {
			t.path = r.URL
		}
	}
	return t.Conn.Write(p)
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if n > 0 && !t.broken && t.path != nil {
		t.buf = append(t.buf, p[:n]...)
		if wrong := t.look(); wrong != nil {
			t.broken = true
			t.report(fmt.Errorf("on the WebSocket %s: %w", t.path.Path, wrong))
		}
	}
	return n, err
}

func (t *tap) look() error {
	if !t.upgraded {
		if done, err := t.handshake(); !done || err != nil {
			return err
		}
	}
	for {
		opcode, fin, payload, size := frame(t.buf)
		if size == 0 {
			return nil
		}
		err := t.frame(opcode, fin, payload)
		t.buf = t.buf[size:]
		if err != nil {
			return err
		}
	}
}

func (t *tap) handshake() (done bool, err error) {
	end := bytes.Index(t.buf, []byte("\r\n\r\n"))
	if end < 0 {
		return false, nil
	}
	end += 4
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(t.buf[:end])), nil)
	if err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		if int64(len(t.buf)-end) < resp.ContentLength {
			return false, nil
		}
		t.broken = true // there is nothing after it
		return false, t.contract.Response(http.MethodGet, t.path, resp.StatusCode, resp.Header, t.buf[end:])
	}
	t.upgraded = true
	t.buf = t.buf[end:]
	t.extended = strings.Contains(resp.Header.Get("Sec-Websocket-Protocol"), "rockpool.v1")
	return true, t.contract.Response(http.MethodGet, t.path, resp.StatusCode, resp.Header, nil)
}

// frame splits the first frame off; size is 0 while it is not complete. Servers do not mask.
func frame(b []byte) (opcode byte, fin bool, payload []byte, size int) {
	if len(b) < 2 {
		return 0, false, nil, 0
	}
	n, at := uint64(b[1]&0x7f), 2
	switch {
	case n == 126 && len(b) >= 4:
		n, at = uint64(binary.BigEndian.Uint16(b[2:])), 4
	case n == 127 && len(b) >= 10:
		n, at = binary.BigEndian.Uint64(b[2:]), 10
	case n >= 126:
		return 0, false, nil, 0
	}
	if uint64(len(b)-at) < n {
		return 0, false, nil, 0
	}
	return b[0] & 0xf, b[0]&0x80 != 0, b[at : at+int(n)], at + int(n)
}

// Opcodes of frames.
const (
	opContinuation, opText, opBinary = 0, 1, 2
)

func (t *tap) frame(opcode byte, fin bool, payload []byte) error {
	switch opcode {
	case opBinary:
		return errors.New("a binary frame came")
	case opContinuation, opText:
		if fin && len(t.message) == 0 {
			return t.text(payload)
		}
		t.message = append(t.message, payload...)
		if !fin {
			return nil
		}
		data := t.message
		t.message = nil
		return t.text(data)
	}
	return nil // Close, ping, pong
}

// whole is how many messages of a connection are held to the schema in every detail. Programs may write a lot: later output need only look like the output
// before it.
const whole = 1000

// output is what a message of output looks like.
var output = regexp.MustCompile(`^\{"type":"std(out|err)","data":"([^"\\]|\\.)+"\}$`)

func (t *tap) text(data []byte) error {
	if t.texts++; t.texts > whole && t.final == "" && output.Match(data) {
		return nil
	}
	kind, err := t.contract.Message(data, t.extended)
	switch {
	case err != nil:
		return err
	case t.final != "":
		return fmt.Errorf("%s came after the final %s", kind, t.final)
	case !t.started && kind == "error" && t.path.Query().Has("offset"): // there is nothing for a client that comes again
	case (kind == "start") == t.started:
		return fmt.Errorf("start comes first and once, not %s", kind)
	}
	t.started = true
	if kind == "exit" || kind == "timeout" || kind == "error" {
		t.final = kind
	}
	return nil
}
