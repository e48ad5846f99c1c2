package httpapi

import (
	"sync"

	"rockpool/internal/orchestrator/jsonform"
)

// jsonWriter is where JSON is made that is sent or copied at once. Writers are used again: growing what one writes to is as much garbage as what it writes.
type jsonWriter struct {
	jsonform.Writer
	dense []byte // for a packed form that becomes a text of it
}

var jsonWriters = sync.Pool{New: func() any { return new(jsonWriter) }}

func newJSONWriter() *jsonWriter { return jsonWriters.Get().(*jsonWriter) }

// release ends the use of a writer, and of the bytes of it that were asked for. One whose bytes somebody may still read, as after a write that failed, is left to the
// collector instead.
func (w *jsonWriter) release() {
	if w.Cap() <= streamPiece && cap(w.dense) <= streamPiece {
		w.Reset()
		jsonWriters.Put(w)
	}
}

// add writes a value.
func (w *jsonWriter) add(v any) error {
	w.Value(v)
	return w.Err()
}
