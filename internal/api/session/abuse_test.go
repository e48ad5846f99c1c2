package session_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/api/session"
	"rockpool/internal/runner/execution"
)

// masked is one frame of a client, as it should be: first is the first byte, with FIN and opcode.
func masked(first byte, payload string) []byte {
	out := []byte{first}
	switch n := len(payload); {
	case n < 126:
		out = append(out, 0x80|byte(n))
	case n < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, 0x80|126), uint16(n))
	default:
		out = binary.BigEndian.AppendUint64(append(out, 0x80|127), uint64(n))
	}
	key := [4]byte{1, 2, 3, 4}
	out = append(out, key[:]...)
	for i := range len(payload) {
		out = append(out, payload[i]^key[i%4])
	}
	return out
}

func frames(all ...[]byte) []byte { return bytes.Join(all, nil) }

// First bytes of frames.
const (
	text, binaryData, cont, closing, ping, pong = 0x81, 0x82, 0x80, 0x88, 0x89, 0x8a
	textMore, contMore                          = 0x01, 0x00
)

// told reads frames until the connection ends: all of the gateway's texts but the first, and the code of its Close, 0 where none came.
func told(r *bufio.Reader) (texts []string, pongs, code int) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return texts, pongs, code
		}
		n := int(head[1] & 0x7f)
		if n == 126 {
			var size [2]byte
			if _, err := io.ReadFull(r, size[:]); err != nil {
				return texts, pongs, code
			}
			n = int(binary.BigEndian.Uint16(size[:]))
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(r, payload); err != nil {
			return texts, pongs, code
		}
		switch head[0] {
		case text:
			texts = append(texts, string(payload))
		case pong:
			pongs++
		case closing:
			if code == 0 && n >= 2 {
				code = int(binary.BigEndian.Uint16(payload))
			}
		}
	}
}

// visit sends bytes to a session whose program reads all of its input, and returns what became of it.
func visit(t *testing.T, data []byte) (input string, code, pongs int, cause error) {
	t.Helper()
	var got bytes.Buffer
	type end struct{ pongs, code int }
	ended := make(chan end, 1)
	cause = servedWith(t, nil, true, func(ctx context.Context, c execution.Client) {
		copied := make(chan struct{})
		go func() { defer close(copied); _, _ = io.Copy(&got, c.Stdin) }()
		<-ctx.Done()
		_ = c.Stdin.Close()
		<-copied
	}, func(c net.Conn) {
		r := bufio.NewReader(c)
		go func() { _, _ = c.Write(data) }()
		_, n, code := told(r)
		ended <- end{n, code}
	})
	e := <-ended
	return got.String(), e.code, e.pongs, cause
}

// What a client may send, and what it may not. Bytes of text and binary frames are input as they are. A frame that is none is answered by a Close, mostly 1002, and
// the client is taken for one that left.
func TestFramesOfAnyKind(t *testing.T) {
	bye := masked(closing, "\x03\xe8")
	for name, c := range map[string]struct {
		data  []byte
		input string
		code  int
	}{
		"text":                            {frames(masked(text, "a\n"), bye), "a\n", 1000},
		"binary":                          {frames(masked(binaryData, "\x00\xff"), bye), "\x00\xff", 1000},
		"text that is not UTF-8":          {frames(masked(text, "a\xff\xc3"), bye), "a\xff\xc3", 1000},
		"an empty frame":                  {frames(masked(text, ""), masked(text, "x"), bye), "x", 1000},
		"fragments":                       {frames(masked(textMore, "a"), masked(contMore, "b"), masked(cont, "c"), bye), "abc", 1000},
		"fragments of nothing":            {frames(masked(textMore, ""), masked(contMore, ""), masked(cont, ""), masked(text, "x"), bye), "x", 1000},
		"a ping between fragments":        {frames(masked(textMore, "a"), masked(ping, "p"), masked(cont, "b"), bye), "ab", 1000},
		"a pong that nobody asked for":    {frames(masked(pong, "p"), masked(text, "x"), bye), "x", 1000},
		"Close without a code":            {masked(closing, ""), "", 1000},
		"Close with another code":         {masked(closing, "\x03\xe9going"), "", 1000},
		"Close with a code that is none":  {masked(closing, "\x03\xed"), "", 1002},
		"Close with half a code":          {masked(closing, "\x03"), "", 1000},
		"Close with a bad reason":         {masked(closing, "\x03\xe8\xff"), "", 1002},
		"a frame without a mask":          {[]byte{text, 1, 'x'}, "", 1002},
		"an unknown opcode":               {masked(0x83, "x"), "", 1002},
		"an unknown control opcode":       {masked(0x8b, "x"), "", 1002},
		"reserved bits":                   {masked(0xc1, "x"), "", 1002},
		"a continuation of nothing":       {masked(cont, "x"), "", 1002},
		"a text within fragments":         {frames(masked(textMore, "a"), masked(text, "b")), "a", 1002},
		"a ping in fragments":             {masked(0x09, "p"), "", 1002},
		"a ping that is too long":         {masked(ping, strings.Repeat("p", 126)), "", 1002},
		"a Close that is too long":        {masked(closing, "\x03\xe8"+strings.Repeat("r", 200)), "", 1002},
		"a length beyond all":             {append([]byte{text, 0x80 | 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 1, 2, 3, 4), "", 1000},
		"two sessions in one":             {frames(masked(text, "a"), bye, masked(text, "b")), "a", 1000},
		"control bytes reach the program": {frames(masked(text, "\x03\x04\x1c"), bye), "\x03\x04\x1c", 1000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				input, code, _, cause := visit(t, c.data)
				if input != c.input || code != c.code || !errors.Is(cause, execution.ErrClientLeft) {
					t.Errorf("the program got %q, the client %d, and it ended by %v; want %q and %d", input, code, cause, c.input, c.code)
				}
			})
		})
	}
}

func TestAPingFloodIsAnsweredAndCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10_000
		data := frames(bytes.Repeat(masked(ping, strings.Repeat("p", 125)), n), masked(closing, "\x03\xe8"))
		began := time.Now()
		input, code, pongs, _ := visit(t, data)
		if input != "" || code != 1000 || pongs != n || time.Since(began) > 2*time.Second {
			t.Errorf("%q, Close %d and %d pongs after %v", input, code, pongs, time.Since(began))
		}
	})
}

// One who floods with pings and reads nothing is given up, not waited for.
func TestAPingFloodWithoutReadingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		cause := served(t, func(ctx context.Context, _ execution.Client) { <-ctx.Done() }, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 256)) // the start, and nothing after it
			for {
				if _, err := c.Write(masked(ping, "p")); err != nil {
					return
				}
			}
		})
		if took := time.Since(began); !errors.Is(cause, execution.ErrClientLeft) || took > 2*time.Minute {
			t.Errorf("it ended after %v by %v", took, cause)
		}
	})
}

// A frame of any size costs a bounded part of it: what the program has not read yet.
func TestAHugeFrameIsPassedOnInPieces(t *testing.T) {
	const size = 256 << 20
	var read atomic.Int64
	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cause := served(t, func(ctx context.Context, c execution.Client) {
		copied := make(chan struct{})
		go func() {
			defer close(copied)
			buf := make([]byte, 64<<10)
			for {
				n, err := c.Stdin.Read(buf)
				if read.Add(int64(n)) > size/2 && peak.HeapAlloc == 0 {
					runtime.GC()
					runtime.ReadMemStats(&peak)
				}
				if err != nil {
					return
				}
			}
		}()
		<-ctx.Done()
		_ = c.Stdin.Close()
		<-copied
	}, func(c net.Conn) {
		go func() { _, _ = io.Copy(io.Discard, c) }()
		_, _ = c.Write(binary.BigEndian.AppendUint64([]byte{binaryData, 0x80 | 127}, size))
		_, _ = c.Write([]byte{0, 0, 0, 0})
		piece := make([]byte, 1<<20)
		for range size >> 20 {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
		_, _ = c.Write(masked(closing, "\x03\xe8"))
	})
	if !errors.Is(cause, execution.ErrClientLeft) || read.Load() != size {
		t.Errorf("%d bytes came, and it ended by %v", read.Load(), cause)
	}
	if grown := int64(peak.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d bytes were in use for a frame of %d", grown, size)
	}
}

// Input that the program does not read stops the client, and no more than a buffer of it is kept.
func TestInputForAProgramThatDoesNotReadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken atomic.Int64
		cause := served(t, func(ctx context.Context, _ execution.Client) {
			synctest.Wait()
			if n := taken.Load(); n > 1<<20 {
				t.Errorf("%d bytes were taken that nobody reads", n)
			}
		}, func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			frame := masked(binaryData, strings.Repeat("x", 60<<10))
			for {
				n, err := c.Write(frame)
				taken.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		if cause != nil {
			t.Errorf("it ended by %v", cause)
		}
	})
}

// Control messages that are none are skipped, whatever they are; the session goes on.
func TestOddControlMessages(t *testing.T) {
	bad := []string{``, `{`, `null`, `[]`, `"x"`, `{"type":null}`, `{"type":"resize"}`, `{"type":"resize","width":-1}`, `{"type":"resize","width":70000}`, `{"type":"resize","width":"1"}`, `{"type":"other"}`,
		`{"type":"signal"}`, `{"type":"signal","name":5}`, strings.Repeat("[", 4096), `{"type":"signal","name":"` + strings.Repeat("x", 10_000) + `"}`, "\xff\xfe", `{"type":"eof"`, `{"type":"eof"}` + strings.Repeat(" ", 5000) + "x"}
	for _, message := range bad {
		synctest.Test(t, func(t *testing.T) {
			data := frames(masked(text, message), masked(binaryData, "still here"), masked(closing, "\x03\xe8"))
			input, code := extended(t, data)
			if input != "still here" || code != 1000 {
				t.Errorf("after %.100q the program got %q and the client %d", message, input, code)
			}
		})
	}
}

// extended is visit with the subprotocol.
func extended(t *testing.T, data []byte) (input string, code int) {
	t.Helper()
	var got bytes.Buffer
	ended := make(chan int, 1)
	_ = servedWith(t, []string{session.Protocol}, true, func(ctx context.Context, c execution.Client) {
		copied := make(chan struct{})
		go func() { defer close(copied); _, _ = io.Copy(&got, c.Stdin) }()
		<-ctx.Done()
		_ = c.Stdin.Close()
		<-copied
	}, func(c net.Conn) {
		go func() { _, _ = c.Write(data) }()
		_, _, code := told(bufio.NewReader(c))
		ended <- code
	})
	code = <-ended
	return got.String(), code
}

// FuzzControlMessages sends any control message between two pieces of input: it may end the input, and nothing else.
func FuzzControlMessages(f *testing.F) {
	for _, seed := range []string{`{"type":"resize","width":80,"height":24}`, `{"type":"signal","name":"SIGINT"}`, `{"type":"eof"}`, `{"Type":"EOF"}`, `{`, strings.Repeat("x", 5000), `{"type":"eof","type":"x"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, message string) {
		input, code := extended(t, frames(masked(binaryData, "a"), masked(text, message), masked(binaryData, "b"), masked(closing, "\x03\xe8")))
		if code != 1000 || input != "ab" && !(input == "a" && strings.Contains(message, "eof")) && !strings.Contains(message, `\u`) {
			t.Errorf("after %q the program got %q and the client %d", message, input, code)
		}
	})
}

// A client that is behind has time to read the end: what it sends meanwhile is taken, so that nothing resets its connection. Who never closes is let go.
func TestAClientHasTimeToReadTheEnd(t *testing.T) {
	for name, piece := range map[string][]byte{"pongs": masked(pong, ""), "input": masked(text, "x"), "pings": masked(ping, "")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took := time.Duration(0)
				_ = servedWith(t, nil, true, func(context.Context, execution.Client) {}, func(c net.Conn) {
					began := time.Now()
					go func() { _, _ = io.Copy(io.Discard, c) }()
					for {
						if _, err := c.Write(piece); err != nil {
							took = time.Since(began)
							return
						}
						time.Sleep(time.Second / 2) // of the bubble
					}
				})
				if took < 5*time.Second || took > 20*time.Second {
					t.Errorf("it could send for %v after the end", took)
				}
			})
		})
	}
}
