package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestExitCodes(t *testing.T) {
	t.Setenv("ROCKPOOL_TOKEN", "")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == "DELETE" && r.URL.Path == "/api/v1/execution-environments/10", r.Method == "PUT":
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/api/v1/execution-environments":
			_, _ = w.Write([]byte(`{"executionEnvironments":[]}`))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	t.Setenv("ROCKPOOL_URL", s.URL)
	broken := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(broken, []byte("server:\n  port: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	doubtful := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(doubtful, []byte("server:\n  prot: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"env", "list"}, 0}, {[]string{"env", "list", "-json"}, 0}, {[]string{"env", "delete", "10"}, 0}, {[]string{"env", "apply", "5", "--image", "host", "--port", "80"}, 0},
		{[]string{"env", "apply", "5", "--image", "host", "--port", "80000"}, 1}, {[]string{"env", "delete", "11"}, 1}, {[]string{"env", "delete", "x"}, 1},
		{[]string{"env", "delete"}, 1}, {[]string{"env", "apply"}, 1}, {[]string{"env", "apply", "5", "--file", "x"}, 1}, {[]string{"env", "apply", "--file", broken}, 1},
		{[]string{"pool"}, 1}, {[]string{"pool", "-3"}, 1}, {[]string{"runners", "claim"}, 1}, {[]string{"token", "a b"}, 1}, {[]string{"token", "name"}, 0},
		{[]string{"nonsense"}, 1}, {[]string{"env", "apply", "--help"}, 0}, {[]string{"version"}, 0}, {[]string{"serve", "--config", broken}, 2}, {[]string{"run", "--env", "1"}, 125},
		{[]string{"check", "--config", broken}, 2}, {[]string{"check", "--config", doubtful}, 2}, {[]string{"check", "--config", doubtful + ".missing"}, 2},
		{[]string{"check", "--config", "../../configuration.example.yaml"}, 0},
	} {
		if got := run(c.args); got != c.want {
			t.Errorf("%q: %d, want %d", c.args, got, c.want)
		}
	}
}
