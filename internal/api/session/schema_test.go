package session

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"rockpool/internal/api/openapi"
)

// What the gateway sends is checked wherever it is tested; here the published schema is held to the types, in both directions.
func TestTheSchemaHasTheFieldsOfTheMessages(t *testing.T) {
	type definition struct {
		Properties map[string]json.RawMessage `json:"properties"`
		Required   []string                   `json:"required"`
	}
	var schema struct {
		Defs map[string]definition `json:"$defs"`
	}
	if err := json.Unmarshal(openapi.WebSocket, &schema); err != nil {
		t.Fatal(err)
	}
	for name, typ := range map[string]reflect.Type{
		"exitWithUsage": reflect.TypeFor[message](), "usage": reflect.TypeFor[usage](), "startAgain": reflect.TypeFor[greeting](),
		"granted": reflect.TypeFor[granted](), "taken": reflect.TypeFor[taken](),
	} {
		d := schema.Defs[name]
		fields := map[string]bool{}
		for f := range typ.Fields() {
			key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields[key] = true
			if _, ok := d.Properties[key]; !ok {
				t.Errorf("%s.%s is not in the schema", name, key)
			}
			if options == "" && !slices.Contains(d.Required, key) {
				t.Errorf("%s.%s is always there, the schema does not say so", name, key)
			}
		}
		for key := range d.Properties {
			if !fields[key] {
				t.Errorf("%s.%s is not in the code", name, key)
			}
		}
	}
	for _, text := range []string{textOutOfMemory, textStopped, textFailed} {
		if quoted, _ := json.Marshal(text); !strings.Contains(string(openapi.WebSocket), string(quoted)) {
			t.Errorf("the schema does not have the text %s", text)
		}
	}
}
