package session

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/runner/execution"
)

func TestChunksOfTextSayTheSameAsTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		var got strings.Builder
		out := &text{kind: "stdout", send: func(data []byte) error {
			var m struct{ Data string }
			if err := json.Unmarshal(data, &m); err != nil || m.Data == "" {
				t.Fatalf("message %s: %v", data, err)
			}
			got.WriteString(m.Data)
			return nil
		}}
		for rest := whole; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "chunk")
			if _, err := out.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := out.flush(); err != nil {
			t.Fatal(err)
		}
		var want string
		data, _ := json.Marshal(whole)
		_ = json.Unmarshal(data, &want)
		if got.String() != want {
			t.Fatalf("got %q, want %q", got.String(), want)
		}
	})
}

func TestLastMessages(t *testing.T) {
	for want, o := range map[string]execution.Outcome{
		`{"type":"exit","data":0}`:                                         {Usage: &execution.Result{}},
		`{"type":"exit","data":255}`:                                       {Code: 255},
		`{"type":"timeout"}`:                                               {Kind: execution.TimedOut},
		`{"type":"error","data":"the allocation was OOM Killed"}`:          {Kind: execution.OutOfMemory},
		`{"type":"error","data":"the allocation stopped as expected"}`:     {Kind: execution.Stopped},
		`{"type":"error","data":"Error executing the request"}`:            {Kind: execution.Failed},
		`{"type":"error","data":"the output limit of 256 MB was reached"}`: {Kind: execution.Flooded, Limit: 256 << 20},
		``: {Kind: execution.Left},
	} {
		if got := string(final(o, false)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
