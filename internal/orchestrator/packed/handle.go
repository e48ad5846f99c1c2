package packed

import (
	"reflect"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// Handle is the one binary encoding of model values: MessagePack with sorted maps, so that equal values give equal bytes.
var Handle = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.Canonical = true
	h.RawToString = true
	h.MapType = reflect.TypeFor[map[string]any]()
	return h
}()
