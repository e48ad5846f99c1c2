package endpoint

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
)

// What a body was read into is used again by others: nothing that was decoded from it may change with it.
func TestWhatWasDecodedDoesNotChangeWithTheNextBody(t *testing.T) {
	type form struct {
		Text string
		Raw  json.RawMessage
		Any  any
		List []byte
	}
	decode := func(text string) form {
		var f form
		body := `{"Text":"` + text + `","Raw":"` + text + `","Any":{"` + text + `":"` + text + `"},"List":"` + text + `"}`
		if err := decodeJSON(httptest.NewRequest("PUT", "/", strings.NewReader(body)), Policy{}, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	first := decode("aaaa")
	for range 100 {
		decode("bbbb")
	}
	if got, _ := json.Marshal(first); strings.Contains(string(got), "b") || !strings.Contains(string(got), `"aaaa":"aaaa"`) {
		t.Errorf("%s", got)
	}
}
