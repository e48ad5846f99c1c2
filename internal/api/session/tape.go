package session

import (
	"errors"
	"sync"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
)

// queueSize is how many messages may wait for a slow client whose session ends with its connection.
const queueSize = 64

// messageCost is what a message that is held counts beside its bytes.
const messageCost = 64

// inputStep and controlStep are how much a client may have sent before it is told how much was taken.
const (
	inputStep   = 16 << 10 // bytes
	controlStep = 16       // messages
)

var errOver = errors.New("the session takes no more output")

var errNotHeld = fault.New(fault.NotFound, "the execution has ended and is not held any more")

// tape is the output of an execution as numbered messages, and how much input it has taken: what a connection has to say, and what a later one needs to go
// on where it broke. The first message has the number 0. With keep, messages stay after they were sent, until the client has acknowledged them or, unless it
// promised to acknowledge all, until there is no room for new ones. Without it a message is gone once it was taken.
type tape struct {
	keep int  // bytes; 0 = nothing is kept for another connection
	acks bool // the client acknowledges what it has: nothing else is dropped

	mu      sync.Mutex
	changed sync.Cond
	reader  *link // the connection that takes; nil while there is none
	first   int64 // number of the oldest message held
	sent    int64 // number of the next message that reader gets
	brought int64 // number of the first message whose sending has not ended well
	held    [][]byte
	bytes   int
	refuses bool // output comes too late
	ended   bool // no message follows those held

	input, told position
}

// position is a prefix of what a client has sent.
type position struct {
	Bytes    int64 // of stdin
	Controls int64 // control messages, acknowledgements not counted
}

func newTape(k execution.Keep) *tape {
	t := &tape{keep: k.Bytes, acks: k.Acks}
	t.changed.L = &t.mu
	return t
}

// push appends a message. It waits while there is no room.
func (t *tape) push(m []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.refuses && t.full(len(m)) {
		t.changed.Wait()
	}
	if t.refuses {
		return errOver
	}
	t.add(m)
	return nil
}

// full makes room where it may, and reports whether there is too little for n bytes. One message is always let in.
func (t *tape) full(n int) bool {
	if t.keep == 0 {
		return len(t.held) >= queueSize
	}
	for len(t.held) > 0 && t.bytes+n+messageCost > t.keep {
		// Whether a broken connection has brought what was sent, nobody knows: then it stays.
		if t.acks || t.reader == nil || t.brought <= t.first {
			return true
		}
		t.drop(t.first + 1)
	}
	return false
}

func (t *tape) add(m []byte) {
	t.held = append(t.held, m)
	t.bytes += len(m) + messageCost
	t.changed.Broadcast()
}

// drop forgets all messages before the given number.
func (t *tape) drop(before int64) {
	for ; t.first < before; t.first++ {
		t.bytes -= len(t.held[0]) + messageCost
		t.held[0] = nil
		t.held = t.held[1:]
	}
	if len(t.held) == 0 {
		t.held = nil
	}
	t.changed.Broadcast()
}

func (t *tape) next() int64 { return t.first + int64(len(t.held)) }

// refuse has no more output come in, also from those that wait.
func (t *tape) refuse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuses = true
	t.changed.Broadcast()
}

// end appends the final message, nil for none. A client that left gets nothing any more.
func (t *tape) end(last []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last != nil {
		t.add(last)
	} else {
		t.drop(t.next())
		t.sent = t.first
	}
	t.refuses, t.ended = true, true
	t.changed.Broadcast()
}

// attach has l take messages from the given number on, and no other connection. Those before are acknowledged by that.
func (t *tape) attach(l *link, offset int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case offset < t.first:
		return fault.New(fault.NotFound, "the output from offset %d on is not held any more, only that from %d on", offset, t.first)
	case offset > t.next():
		return fault.New(fault.Invalid, "the offset %d lies behind the %d messages that there are", offset, t.next())
	}
	t.reader, t.sent, t.brought, t.told = l, offset, offset, t.input
	t.drop(offset) // that is what the client has
	return nil
}

// detach has l take no more.
func (t *tape) detach(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader == l {
		t.reader = nil
	}
	t.changed.Broadcast()
}

// take waits for what l has to send next. Without a message, last says that there will be none: everything was taken. If not last either, the connection was
// replaced or has broken.
func (t *tape) take(l *link) (m []byte, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader == l && t.brought != t.sent { // whoever asks for more has sent what it took before
		t.brought = t.sent
		t.changed.Broadcast()
	}
	for {
		switch {
		case t.reader != l:
			return nil, false
		case t.news() && !(t.ended && t.sent == t.next()): // the final message is the last
			t.told = t.input
			return encode(taken{"input", t.told.Bytes, t.told.Controls}), false
		case t.sent < t.next():
			m := t.held[t.sent-t.first]
			t.sent++
			if t.keep == 0 {
				t.drop(t.sent)
			}
			t.changed.Broadcast()
			return m, false
		case t.ended:
			return nil, true
		}
		t.changed.Wait()
	}
}

// ack notes that l's client has everything before the given number. It reports whether that is all there will ever be.
func (t *tape) ack(l *link, offset int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader != l || offset < 0 || offset > t.sent {
		return false // it cannot have what it was not sent
	}
	t.drop(offset)
	return t.ended && offset == t.next()
}

// took counts input.
func (t *tape) took(bytes, controls int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.input.Bytes += bytes
	t.input.Controls += controls
	if t.news() {
		t.changed.Broadcast()
	}
}

// news reports whether the client should be told how much was taken.
func (t *tape) news() bool {
	return t.keep > 0 && (t.input.Bytes-t.told.Bytes >= inputStep || t.input.Controls-t.told.Controls >= controlStep)
}

// taken is how much input was taken so far.
func (t *tape) taken() position {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.input
}
