package httpapi

import (
	"bytes"
	"encoding/json"
	"sync"
)

// jsonWriter is where JSON is made that is sent or copied at once. Writers are used again: growing what one writes to is as much garbage as what it writes.
type jsonWriter struct {
	b     bytes.Buffer
	enc   *json.Encoder
	dense []byte // for a packed form that becomes a text of it
}

var jsonWriters = sync.Pool{New: func() any {
	w := new(jsonWriter)
	w.enc = json.NewEncoder(&w.b)
	w.enc.SetEscapeHTML(false)
	return w
}}

func newJSONWriter() *jsonWriter { return jsonWriters.Get().(*jsonWriter) }

// release ends the use of a writer, and of the bytes of it that were asked for. One whose bytes somebody may still read, as after a write that failed, is left to the
// collector instead.
func (w *jsonWriter) release() {
	if w.b.Cap() <= streamPiece && cap(w.dense) <= streamPiece {
		w.b.Reset()
		jsonWriters.Put(w)
	}
}

// add writes a value.
func (w *jsonWriter) add(v any) error {
	if err := w.enc.Encode(v); err != nil {
		return err
	}
	w.b.Truncate(w.b.Len() - len("\n"))
	return nil
}
