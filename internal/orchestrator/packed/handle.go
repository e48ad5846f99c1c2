package packed

import (
	"errors"
	"reflect"
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// Handle is the one binary encoding of model values: MessagePack with sorted maps, so that equal values give equal bytes.
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

// What something that waits for its next use may hold.
const (
	keptBuffer = 1 << 20 // bytes
	keptTexts  = 1 << 8
)

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

var errNoJob = errors.New("there is none")

// Job makes the form in which specifications travel with allocations, ReadJob reads it.
func Job(j *model.Job) ([]byte, error) { return Append(nil, j) }

func ReadJob(b []byte) (*model.Job, error) {
	var j JobIn
	err := Decode(b, &j)
	if err == nil && j.Job == nil {
		err = errNoJob
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "a packed specification is damaged: %v", err)
	}
	return j.Job, nil
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
