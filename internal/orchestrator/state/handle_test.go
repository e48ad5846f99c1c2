package state_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// The decoder uses one value for all elements of a map whose elements are structs, so what such an element refers to would be shared by all. Pointers are
// made anew.
func TestElementsOfMapsKeepWhatIsTheirs(t *testing.T) {
	node := model.Node{Drivers: map[string]*model.DriverInfo{
		"docker": {Detected: true, Attributes: map[string]string{"version": "1"}}, "exec": {Detected: true},
		"sandbox": {Healthy: true, Attributes: map[string]string{"images": "host"}},
	}}
	held := model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{
		"a": {CPU: 1, Devices: []model.AllocatedDevice{{Name: "x", DeviceIDs: []string{"1"}}}},
		"b": {CPU: 2, Devices: []model.AllocatedDevice{{Name: "y", DeviceIDs: []string{"2"}}}}, "c": {CPU: 3},
	}}
	node.Resources.Devices = []model.NodeDevice{{Attributes: map[string]model.Attribute{
		"a": model.IntOf(7, "MiB"), "b": model.TextOf("slot"), "c": model.BoolOf(true), "d": model.FloatOf(1.5, "W"), "e": model.TextOf(""), "f": model.IntOf(0, ""),
	}}}
	var gotNode model.Node
	var gotHeld model.AllocatedResources
	for _, c := range []struct{ in, out any }{{node, &gotNode}, {held, &gotHeld}} {
		var b []byte
		if err := codec.NewEncoderBytes(&b, state.Handle).Encode(c.in); err != nil {
			t.Fatal(err)
		}
		if err := codec.NewDecoderBytes(b, state.Handle).Decode(c.out); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(node.Drivers, gotNode.Drivers); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(node.Resources.Devices, gotNode.Resources.Devices); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(held, gotHeld); diff != "" {
		t.Error(diff)
	}
}

// A record that has nothing in it is refused, whatever it should be: not met by a server that works with it.
func TestEmptyRecords(t *testing.T) {
	for kind := range uint8(120) {
		var b []byte
		enc := codec.NewEncoderBytes(&b, state.Handle)
		for _, v := range []any{kind, nil, uint8(99), nil} {
			if err := enc.Encode(v); err != nil {
				t.Fatal(err)
			}
		}
		err := state.New().Restore(bytes.NewReader(b))
		if jobs := kind == 3 || kind == 4 || kind == 6 || kind == 7; jobs && err == nil {
			t.Errorf("a record of kind %d with nothing in it is restored", kind)
		}
	}
}
