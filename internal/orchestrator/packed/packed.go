// Package packed is a dense form of lists of allocations and of what nodes report about them, for the log and for the way between servers and nodes.
//
// Most of an allocation is what the others of its group have too. So a list has templates, each the whole of one allocation in MessagePack, and a row for each
// allocation with its template's number and what is its own. Texts stand once. What rows share, the unpacked allocations share in memory; nobody changes them.
// What different jobs and lists have alike they share too, see shared.go.
//
// The form is on disk: what can be read today must be readable for ever. Its first byte says how the rest is built.
package packed

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"

	"rockpool/internal/fault"
)

// Formats, the first byte of each list.
const (
	formatAllocs  = 1
	formatReports = 2
)

// mostTexts bounds how many texts a list keeps to refer to, and longestText how long these are.
const (
	mostTexts   = 1 << 16
	longestText = 512
)

// mostRoom bounds for how many things there is room before they were read: there may be said to be more than there are.
const mostRoom = 1 << 10

type writer struct {
	b     []byte
	texts map[string]uint64
	err   error

	scratch        []byte
	tasks, details []string // names that are being written
}

// sortedKeys appends the keys of a map, in order.
func sortedKeys[V any](to []string, m map[string]V) []string {
	for k := range m {
		to = append(to, k)
	}
	slices.Sort(to)
	return to
}

func (w *writer) uint(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) int(n int64)   { w.b = binary.AppendVarint(w.b, n) }

func (w *writer) bytes(b []byte) {
	w.uint(uint64(len(b)))
	w.b = append(w.b, b...)
}

// text writes a text, or the number of one that was written before, from 2 on. 0 = a text follows and gets the next number, 1 = one follows that gets none.
func (w *writer) text(s string) {
	n, known := w.texts[s]
	switch {
	case known:
		w.uint(n)
		return
	case len(s) <= longestText && len(w.texts) < mostTexts:
		w.texts[s] = uint64(len(w.texts)) + 2
		w.uint(0)
	default:
		w.uint(1)
	}
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

// id writes an id, a UUID in 16 bytes.
func (w *writer) id(s string) {
	var raw [16]byte
	if len(s) == 36 && fromUUID(&raw, s) && uuidOf(raw[:]) == s {
		w.b = append(append(w.b, 1), raw[:]...)
		return
	}
	w.b = append(w.b, 0)
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

func fromUUID(raw *[16]byte, s string) bool {
	var x [32]byte
	copy(x[:], s[0:8])
	copy(x[8:], s[9:13])
	copy(x[12:], s[14:18])
	copy(x[16:], s[19:23])
	copy(x[20:], s[24:36])
	_, err := hex.Decode(raw[:], x[:])
	return err == nil
}

func uuidOf(raw []byte) string {
	var x [36]byte
	hex.Encode(x[0:8], raw[0:4])
	hex.Encode(x[9:13], raw[4:6])
	hex.Encode(x[14:18], raw[6:8])
	hex.Encode(x[19:23], raw[8:10])
	hex.Encode(x[24:36], raw[10:16])
	x[8], x[13], x[18], x[23] = '-', '-', '-', '-'
	return string(x[:])
}

func (w *writer) float(f float64) { w.b = binary.BigEndian.AppendUint64(w.b, math.Float64bits(f)) }

// whole writes a value in MessagePack.
func (w *writer) whole(v any) {
	b, err := Append(w.scratch[:0], v)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.scratch = b
	w.bytes(b)
}

// reader reads what a writer wrote. After an error all it reads is zero.
type reader struct {
	b     []byte
	texts []string
	pairs []string // of one event's details
	err   error
}

func (r *reader) fail(why string) {
	if r.err == nil {
		r.err = fault.New(fault.Invalid, "a packed list is damaged: %s", why)
	}
	r.b = nil
}

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail("it ends in a number")
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) int() int64 {
	n, size := binary.Varint(r.b)
	if size <= 0 {
		r.fail("it ends in a number")
		return 0
	}
	r.b = r.b[size:]
	return n
}

// count reads how many things follow, each of at least one byte.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail("it is shorter than it says")
		return 0
	}
	return int(n)
}

// some reads how many things follow where there may be none of a kind (false) rather than 0.
func (r *reader) some() (n int, there bool) {
	k := r.uint()
	if k == 0 {
		return 0, false
	}
	if k-1 > uint64(len(r.b)) {
		r.fail("it is shorter than it says")
		return 0, false
	}
	return int(k - 1), true
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail("it is shorter than it says")
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (r *reader) text() string {
	switch n := r.uint(); {
	case n > 1:
		if n-2 >= uint64(len(r.texts)) {
			r.fail("it refers to a text that it does not have")
			return ""
		}
		return r.texts[n-2]
	case n == 1:
		return string(r.bytes(r.count()))
	}
	s := string(r.bytes(r.count()))
	r.texts = append(r.texts, s)
	return s
}

// word is text for what takes few values.
func (r *reader) word() string {
	if len(r.b) > 0 && r.b[0] == 0 { // the first of its kind in this list
		r.b = r.b[1:]
		s := wordOf(r.bytes(r.count()))
		r.texts = append(r.texts, s)
		return s
	}
	return r.text()
}

// node is id for nodes, of which there are few.
func (r *reader) node() string {
	if len(r.b) > 16 && r.b[0] == 1 {
		raw := r.bytes(17)
		if v := sharedNodes.known(raw[1:], nil); v != nil {
			return *v
		}
		id := uuidOf(raw[1:])
		return *sharedNodes.known(raw[1:], &id)
	}
	return r.id()
}

func (r *reader) id() string {
	if r.byte() == 1 {
		if raw := r.bytes(16); len(raw) == 16 {
			return uuidOf(raw)
		}
		return ""
	}
	return string(r.bytes(r.count()))
}

func (r *reader) float() float64 {
	if b := r.bytes(8); len(b) == 8 {
		return math.Float64frombits(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (r *reader) whole(v any) {
	read(r, func(form []byte) (*struct{}, error) { return nil, Decode(form, v) })
}

// read reads a value in MessagePack in its own way. What it returns after an error is not used.
func read[T any](r *reader, own func(form []byte) (*T, error)) *T {
	b := r.bytes(r.count())
	if r.err != nil {
		return new(T)
	}
	v, err := own(b)
	if err != nil {
		r.fail(err.Error())
	}
	return v
}
