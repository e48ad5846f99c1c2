package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"rockpool/internal/runner/execution"
)

// Texts of error messages. Clients compare the first.
const (
	textOutOfMemory = "the allocation was OOM Killed"
	textStopped     = "the allocation stopped as expected"
	textFailed      = "Error executing the request"
	textFlooded     = "the output limit of %d MB was reached"
)

type message struct {
	Type  string `json:"type"`
	Data  any    `json:"data,omitempty"`
	Usage *usage `json:"usage,omitempty"` // with the subprotocol only
}

// usage is what an execution used, in the exit message of the subprotocol.
type usage struct {
	CPUTimeMS       int64  `json:"cpuTimeMs"`
	WallTimeMS      int64  `json:"wallTimeMs"`
	PeakMemoryBytes int64  `json:"peakMemoryBytes"`
	OOMKilled       bool   `json:"oomKilled"`
	OutputBytes     int64  `json:"outputBytes"`
	Verdict         string `json:"verdict,omitempty"`
}

// greeting is the first message on a connection; the rest of it is for clients that may come again.
type greeting struct {
	Type     string   `json:"type"`
	Offset   *int64   `json:"offset,omitempty"` // number of the message that follows
	Input    *int64   `json:"input,omitempty"`  // bytes taken so far
	Controls *int64   `json:"controls,omitempty"`
	Reattach *granted `json:"reattach,omitempty"`
}

type granted struct {
	BufferBytes  int `json:"bufferBytes"`
	GraceSeconds int `json:"graceSeconds"`
}

func hello(k execution.Keep, offset int64, taken position) []byte {
	if k.Grace == 0 {
		return encode(greeting{Type: "start"})
	}
	return encode(greeting{"start", &offset, &taken.Bytes, &taken.Controls, &granted{k.Bytes, int(k.Grace / time.Second)}})
}

// taken tells a client that may come again how much of what it has sent it need not send again.
type taken struct {
	Type     string `json:"type"`
	Input    int64  `json:"input"`
	Controls int64  `json:"controls"`
}

func encode(m any) []byte {
	data, err := json.Marshal(m)
	if err != nil {
		panic("session: a message cannot be encoded: " + err.Error()) // strings and numbers only
	}
	return data
}

// final is the last message of an outcome; nil for a client that left.
func final(o execution.Outcome, extended bool) []byte {
	switch o.Kind {
	case execution.Exited:
		m := message{Type: "exit", Data: o.Code}
		if extended && o.Usage != nil {
			m.Usage = &usage{o.Usage.CPUTime.Milliseconds(), o.Usage.WallTime.Milliseconds(), o.Usage.PeakMemory, o.Usage.OOMKilled,
				o.Usage.OutputBytes, o.Usage.Verdict}
		}
		return encode(m)
	case execution.TimedOut:
		return encode(message{Type: "timeout"})
	case execution.OutOfMemory:
		return encode(message{Type: "error", Data: textOutOfMemory})
	case execution.Stopped:
		return encode(message{Type: "error", Data: textStopped})
	case execution.Flooded:
		return encode(message{Type: "error", Data: fmt.Sprintf(textFlooded, o.Limit>>20)})
	case execution.Left:
		return nil
	}
	return encode(message{Type: "error", Data: textFailed})
}

// text is a stream of output: bytes in, messages out.
type text struct {
	kind string
	send func([]byte) error

	mu   sync.Mutex
	held []byte // the beginning of a character that a chunk border cut
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	whole := append(t.held, p...) //nolint:gocritic // held is empty or ours
	cut := incomplete(whole)
	t.held = bytes.Clone(whole[len(whole)-cut:])
	return len(p), t.emit(whole[:len(whole)-cut])
}

// flush sends what was held back.
func (t *text) flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	held := t.held
	t.held = nil
	return t.emit(held)
}

func (t *text) emit(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	return t.send(encode(message{Type: t.kind, Data: string(p)})) // encoding/json writes U+FFFD for what is invalid
}

// incomplete is how many bytes at the end of p may be the beginning of a character.
func incomplete(p []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		c := p[len(p)-n]
		if utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(p[len(p)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}
