package api

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rockpool/internal/runner/files"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestTheTableOfRoutes(t *testing.T) {
	var b strings.Builder
	for _, r := range (&API{}).table() {
		p := r.Policy
		fmt.Fprintf(&b, "%-7s %-45s %-24s scope=%s body=%d timeout=%v drain=%v\n", r.Method, r.Path, r.Name, p.Scope, p.Body, p.Timeout, p.Drain)
	}
	golden := filepath.Join("testdata", "routes.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWhatIsHidden(t *testing.T) {
	for _, c := range []struct {
		listed, name string
		want         bool
	}{
		{"./", "./a", false}, {"./", "./.bashrc", true}, {"./", "./.git/config", true}, {"./", ".bashrc", true},
		{".git", ".git/config", false}, {".git/", ".git/.x", true}, {"dir", "a.txt", false}, {"dir", ".a", true},
		{"/", "/etc/passwd", false}, {"/", "/.dockerenv", true}, {".bashrc", ".bashrc", false}, {"../x", "../x/a", false},
	} {
		if got := hidden(c.listed, c.name); got != c.want {
			t.Errorf("%s in a listing of %s: got %v", c.name, c.listed, got)
		}
	}
}

func TestWebSocketURLs(t *testing.T) {
	for want, o := range map[string]Options{
		"ws://h:1/api/v1/runners/r/websocket?executionID=e":           {},
		"wss://h:1/api/v1/runners/r/websocket?executionID=e":          {TLS: true},
		"wss://example.org/api/v1/runners/r/websocket?executionID=e":  {PublicURL: "https://example.org/"},
		"ws://example.org/p/api/v1/runners/r/websocket?executionID=e": {PublicURL: "http://example.org/p", TLS: true},
	} {
		if got := (&API{opts: o}).webSocketURL("h:1", "r", "e"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func FuzzUpdatesAreReadOrRefused(f *testing.F) {
	f.Add(`{"delete":["./*"],"copy":[{"path":"a/"},{"path":"../b","content":"aGk="}]}`)
	f.Add(`{"copy":{}}`)
	f.Add(`[`)
	f.Fuzz(func(t *testing.T, body string) {
		u, err := files.Read(strings.NewReader(body), time.Unix(0, 0), nil)
		if err != nil {
			if status, _ := statusOf(err); status != 400 {
				t.Errorf("%q: status %d for %v", body, status, err)
			}
			return
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
}
