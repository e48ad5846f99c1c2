// Package jsonform writes JSON of the few kinds of objects that are written thousands of times a second, with the bytes that encoding/json makes of them, but
// without a look at their types and without another object that is made only to be written.
//
// What the objects of a kind have alike is encoding/json's own text of a sample, see [Of]. So a field that a later version of a type has is written, as the sample has
// it; where its values differ it needs a hole. A test for each form holds it to encoding/json with objects that have anything, see jsonformtest. What is seldom
// there needs no form, see [Writer.Value].
package jsonform

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Mark is a number for marks, as are those after it: nothing else in a sample is likely to have it.
const Mark = 10_000_000_001

// Hole is where objects of a kind differ.
type Hole[T any] struct {
	mark  any
	write func(*Writer, T)
}

// At makes a hole: mark is the value that the sample has there, and write writes that of an object.
func At[T any](mark any, write func(*Writer, T)) Hole[T] { return Hole[T]{mark, write} }

// Of makes what writes objects of a kind: the text that encoding/json makes of a sample, with other values in its holes. These are in the order in which the sample is
// written. It panics where a mark is not found behind the one before it: forms are made when the program starts.
func Of[T any](sample any, holes ...Hole[T]) func(*Writer, T) {
	type step struct {
		before []byte
		write  func(*Writer, T)
	}
	var w Writer
	w.Value(sample)
	rest := bytes.Clone(w.Bytes())
	steps := make([]step, len(holes))
	var last []byte // mark
	once := func(before []byte) {
		if last != nil && bytes.Contains(before, last) {
			panic(fmt.Sprintf("jsonform: %s is in a sample twice, also in %s", last, before))
		}
	}
	for i, hole := range holes {
		w.Buffer.Reset()
		w.Value(hole.mark)
		before, after, ok := bytes.Cut(rest, w.Bytes())
		if !ok {
			panic(fmt.Sprintf("jsonform: %s is not in the rest of a sample, %s", w.Bytes(), rest))
		}
		once(before)
		steps[i], rest, last = step{before, hole.write}, after, bytes.Clone(w.Bytes())
	}
	once(rest)
	if w.err != nil {
		panic(fmt.Sprintf("jsonform: a sample cannot be encoded: %v", w.err))
	}
	return func(w *Writer, v T) {
		for _, s := range steps {
			w.Raw(s.before)
			s.write(w, v)
		}
		w.Raw(rest)
	}
}

// Writer writes JSON to a buffer. After an error what it has written is of no use.
type Writer struct {
	bytes.Buffer
	enc  *json.Encoder // to the buffer
	keys []string      // of the maps that are being written
	err  error
}

// Err is the first error.
func (w *Writer) Err() error { return w.err }

// Reset makes a writer as good as new, but for its memory.
func (w *Writer) Reset() { w.Undo(0) }

// Undo forgets what was written behind the first n bytes, and the error.
func (w *Writer) Undo(n int) {
	w.Truncate(n)
	clear(w.keys)
	w.keys, w.err = w.keys[:0], nil
}

// Value writes what encoding/json makes of a value, without escapes for HTML.
func (w *Writer) Value(v any) {
	if w.enc == nil {
		w.enc = json.NewEncoder(&w.Buffer)
		w.enc.SetEscapeHTML(false)
	}
	if err := w.enc.Encode(v); err != nil {
		if w.err == nil {
			w.err = err
		}
		return
	}
	w.Truncate(w.Len() - len("\n"))
}

// Raw writes JSON that was made before.
func (w *Writer) Raw(piece []byte) { _, _ = w.Write(piece) }

// Text writes a string.
func (w *Writer) Text(s string) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x80 || c == '"' || c == '\\' {
			w.Value(s)
			return
		}
	}
	w.WriteByte('"')
	w.WriteString(s)
	w.WriteByte('"')
}

// Int and Uint write numbers.
func (w *Writer) Int(n int64)   { w.Raw(strconv.AppendInt(w.AvailableBuffer(), n, 10)) }
func (w *Writer) Uint(n uint64) { w.Raw(strconv.AppendUint(w.AvailableBuffer(), n, 10)) }

// Bool writes true or false.
func (w *Writer) Bool(b bool) { w.Raw(strconv.AppendBool(w.AvailableBuffer(), b)) }

// Float writes a number. One that JSON has no form for is an error.
func (w *Writer) Float(f float64) {
	if abs := math.Abs(f); abs != 0 && !(abs >= 1e-6 && abs < 1e21) { // with an exponent, or none at all
		w.Value(f)
		return
	}
	w.Raw(strconv.AppendFloat(w.AvailableBuffer(), f, 'f', -1, 64))
}

// Time writes a time. One outside the years 0 to 9999 is an error.
func (w *Writer) Time(t time.Time) {
	if y := t.Year(); y < 0 || y > 9999 || t.Location() != time.UTC {
		w.Value(t)
		return
	}
	w.WriteByte('"')
	w.Raw(t.AppendFormat(w.AvailableBuffer(), time.RFC3339Nano))
	w.WriteByte('"')
}

// Map writes a map in the order of its keys, or null for nil. value writes one of its values.
func Map[V any](w *Writer, m map[string]V, value func(*Writer, V)) {
	if m == nil {
		w.WriteString("null")
		return
	}
	from := len(w.keys)
	for k := range m {
		w.keys = append(w.keys, k)
	}
	to := len(w.keys)
	slices.Sort(w.keys[from:to])
	w.WriteByte('{')
	for i := from; i < to; i++ {
		if i > from {
			w.WriteByte(',')
		}
		k := w.keys[i]
		w.Text(k)
		w.WriteByte(':')
		value(w, m[k])
	}
	w.WriteByte('}')
	clear(w.keys[from:to])
	w.keys = w.keys[:from]
}

// List writes a list, or null for nil. value writes one of its values.
func List[V any](w *Writer, list []V, value func(*Writer, V)) {
	if list == nil {
		w.WriteString("null")
		return
	}
	w.WriteByte('[')
	for i, v := range list {
		if i > 0 {
			w.WriteByte(',')
		}
		value(w, v)
	}
	w.WriteByte(']')
}
