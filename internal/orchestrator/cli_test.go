package orchestrator_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/cli"
)

// The commands against a real server with a node that runs nothing but says so.
func TestCommandsAgainstAServer(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Token: "secret", JoinToken: "join"})
	c.join(newModelNode())
	run := func(in string, line ...string) (int, string) {
		t.Helper()
		for _, cmd := range cli.Table() {
			words := strings.Fields(cmd.Path)
			if len(line) < len(words) || strings.Join(line[:len(words)], " ") != cmd.Path {
				continue
			}
			var out bytes.Buffer
			args := append([]string{"--address", c.http.URL, "--token", "secret"}, line[len(words):]...)
			err := cmd.Parse(t.Context(), cli.Env{In: strings.NewReader(in), Out: &out, Err: &out, Poll: time.Millisecond}, args...)
			if err != nil {
				out.WriteString(err.Error())
			}
			return cli.Code(err), out.String()
		}
		t.Fatalf("there is no command %q", line)
		return 0, ""
	}
	const text = `
variable "driver" {}
variable "memory" {
  type    = number
  default = 10
}
job "a" {
  type = "batch"
  group "g" {
    task "t" {
      driver = var.driver
      resources {
        cpu    = 10
        memory = var.memory
      }
    }
  }
}`
	for _, s := range []struct {
		in, line string
		code     int
		want     string
	}{
		{"", "job status", 0, "No running jobs"},
		{text, "job validate --var driver=exec -", 0, "is valid"},
		{text, "job validate -", 1, "neither a value nor a default"},
		{text, "job run --var driver=exec -", 0, "is running"},
		{text, "job run --check-index 0 --var driver=exec -", 1, "job already exists"},
		{"", "job status a", 0, "running"},
		{strings.Replace(text, `"a"`, `"big"`, 1), "job run --var driver=exec --var memory=99999999 -", 2, "memory"},
		{"", "eval list --job big --status blocked", 0, "blocked"},
		{"", "job status big", 0, "Why it is not all placed"},
		{"", "node status", 0, "ready"},
		{"", "server members", 0, "alive"},
		{"", "operator raft list-peers", 0, "leader"},
		{"", "job stop --purge a", 0, "is stopped"},
		{"", "job status a", 1, "no job whose id begins"},
		{"", "system gc", 0, "collected"},
	} {
		if code, out := run(s.in, strings.Fields(s.line)...); code != s.code || !strings.Contains(out, s.want) {
			t.Errorf("%s: exit code %d, want %d with %q:\n%s", s.line, code, s.code, s.want, out)
		}
	}
}
