// Package msgpack is the one binary encoding of model values, for the log, for snapshots, and for what travels between servers and nodes.
package msgpack

import (
	"reflect"
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// Handle describes it: MessagePack with sorted maps, so that equal values give equal bytes.
var Handle = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.Canonical = true
	h.RawToString = true
	h.MapType = reflect.TypeFor[map[string]any]()
	return h
}()

// Encoders and decoders are used again: making one costs more than a small value.
var (
	encoders = sync.Pool{New: func() any { return &encoder{enc: codec.NewEncoderBytes(new([]byte), Handle)} }}
	decoders = sync.Pool{New: func() any { return codec.NewDecoderBytes(nil, Handle) }}
)

type encoder struct {
	enc *codec.Encoder
	b   []byte
}

// keptBuffer is what an encoder that waits for its next use may hold, in bytes.
const keptBuffer = 1 << 20

// Append appends the form of v to b.
func Append(b []byte, v any) ([]byte, error) {
	e := encoders.Get().(*encoder)
	e.b = e.b[:0]
	e.enc.ResetBytes(&e.b)
	err := e.enc.Encode(v)
	if err != nil {
		return nil, err // and whoever is in an unknown state is not used again
	}
	if b == nil {
		b = make([]byte, 0, len(e.b))
	}
	b = append(b, e.b...)
	if cap(e.b) <= keptBuffer {
		encoders.Put(e)
	}
	return b, nil
}

// Decode reads the form of one value from the beginning of b.
func Decode(b []byte, into any) error {
	d := decoders.Get().(*codec.Decoder)
	d.ResetBytes(b)
	err := d.Decode(into)
	d.ResetBytes([]byte{}) // it holds on to nothing
	if err == nil {
		decoders.Put(d)
	}
	return err
}
