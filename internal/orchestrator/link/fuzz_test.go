package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// pieces gives a few bytes at a time.
type pieces struct {
	io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	p.n = p.n*7%13 + 1
	return p.Reader.Read(b[:min(len(b), p.n)])
}
func (p *pieces) Write(b []byte) (int, error) { return len(b), nil }
func (p *pieces) Close() error                { return nil }

// FuzzFrames holds the guard against a plain reading of the same bytes: it passes on what it was given, byte for byte, up to the piece with the first head
// that opens a stream.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0})
	f.Add(bytes.Repeat([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, 100))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 2, 255, 255, 255, 255, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		bad, pings := -1, 0 // where the first head ends that is refused
		for at := 0; at+frameHead <= len(data); {
			h := data[at : at+frameHead]
			at += frameHead
			if binary.BigEndian.Uint16(h[2:])&flagSYN != 0 {
				if h[1] == framePing {
					pings++
				}
				if h[1] != framePing || pings > maxPings {
					bad = at
					break
				}
			}
			if h[1] == frameData {
				at += int(binary.BigEndian.Uint32(h[8:]))
			}
		}
		got, err := io.ReadAll(&watched{ReadWriteCloser: &pieces{Reader: bytes.NewReader(data)}})
		if !bytes.HasPrefix(data, got) || bad < 0 && (err != nil || len(got) != len(data)) || bad >= 0 && (err == nil || errors.Is(err, io.EOF) || len(got) >= bad) {
			t.Fatalf("%d of %d bytes, %v; the first bad head ends at %d", len(got), len(data), err, bad)
		}
	})
}
