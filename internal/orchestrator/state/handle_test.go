package state_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// TestDriversKeepTheirOwnAttributes: the decoder uses one value for all elements of a map whose elements are structs, so what such an element refers to would
// be shared by all. Pointers are made anew.
func TestDriversKeepTheirOwnAttributes(t *testing.T) {
	in := model.Node{Drivers: map[string]*model.DriverInfo{
		"docker": {Detected: true, Attributes: map[string]string{"version": "1"}}, "exec": {Detected: true},
		"sandbox": {Healthy: true, Attributes: map[string]string{"images": "host"}},
	}}
	var b []byte
	if err := codec.NewEncoderBytes(&b, state.Handle).Encode(in); err != nil {
		t.Fatal(err)
	}
	var out model.Node
	if err := codec.NewDecoderBytes(b, state.Handle).Decode(&out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in.Drivers, out.Drivers); diff != "" {
		t.Error(diff)
	}
}
