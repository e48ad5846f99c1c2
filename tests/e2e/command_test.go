package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"rockpool/tests/service"
)

func gatewayRun(ctx context.Context, url string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "gateway"), append([]string{"run", "--url", url, "--token", token, "--env", "10"}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestGatewayRunWithPipes(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 2, 64)
	dir := t.TempDir()
	program := "import sys\nprint(sys.stdin.read().upper(), end='')\nprint('oops', file=sys.stderr)\nsys.exit(5)\n"
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"a directory": {"--dir", dir, "--", "python3", "main.py"},
		"a file":      {"--file", filepath.Join(dir, "main.py"), "--", "python3", "main.py"},
	} {
		var out, errs bytes.Buffer
		cmd := gatewayRun(ctx, s.URL, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("hello\n"), &out, &errs
		err := cmd.Run()
		if exitCode(err) != 5 || out.String() != "HELLO\n" || errs.String() != "oops\n" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", name, exitCode(err), out.String(), errs.String())
		}
	}
}

func TestGatewayRunGivesTheRunnerBackWhenItsReaderLeaves(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	cmd := gatewayRun(ctx, s.URL, "--", "yes")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	_ = out.Close()
	if code := exitCode(cmd.Wait()); code != 141 {
		t.Errorf("the exit code is %d", code)
	}
	stats, err := s.Statistics(ctx)
	if err != nil || stats["10"].UsedRunners != 0 {
		t.Errorf("the pool afterwards: %+v, %v", stats, err)
	}
}

func TestGatewayRunTellsItsOwnFailuresFromTheProgram(t *testing.T) {
	ctx := bounded(t)
	for _, args := range [][]string{{"run", "--", "true"}, {"run", "--env", "10"}, {"run", "--env", "ten", "--", "true"}} {
		if code := exitCode(exec.CommandContext(ctx, filepath.Join(binaries, "gateway"), args...).Run()); code != 125 {
			t.Errorf("%q ends with %d", args, code)
		}
	}
}

func TestGatewayRunOnATerminal(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 2, 64)
	cmd := gatewayRun(ctx, s.URL, "--", "bash", "-c", "stty size; trap 'echo interrupted; exit 9' INT; read x; echo \"x=$x\"; read y")
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	stop := context.AfterFunc(ctx, func() { _ = term.Close() })
	defer stop()
	expect := func(want string) {
		t.Helper()
		var seen strings.Builder
		buf := make([]byte, 1024)
		for !strings.Contains(seen.String(), want) {
			n, err := term.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				t.Fatalf("%v; the screen shows %q, not %q", err, seen.String(), want)
			}
		}
	}
	send := func(s string) {
		t.Helper()
		if _, err := io.WriteString(term, s); err != nil {
			t.Fatal(err)
		}
	}
	expect("33 77")
	send("typed\r")
	expect("x=typed")
	send("\x03")
	expect("interrupted")
	if code := exitCode(cmd.Wait()); code != 9 {
		t.Errorf("exit code %d, want the program's 9", code)
	}
}

func TestGatewayRunPassesItsSignals(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	cmd := gatewayRun(ctx, s.URL, "--", "bash", "-c", "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe() // stays open
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := out.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "ready") {
		t.Fatalf("%q %v", buf[:n], err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	if code := exitCode(cmd.Wait()); code != 9 || !strings.Contains(string(rest), "interrupted") {
		t.Errorf("exit %d, output %q", code, rest)
	}
}

func TestServeSaysWhatIsMissing(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("", "rockpool-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(binaries, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(bounded(t), filepath.Join(binaries, "gateway"), "serve", "-config", filepath.Join(dir, "none.yaml"))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "ROCKPOOL_SERVER_PORT=0", "ROCKPOOL_ORCHESTRATOR_DATADIR=" + dir + "/data"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if exitCode(err) <= 0 || !strings.Contains(string(out), "root") {
		t.Errorf("exit %d: %s", exitCode(err), out)
	}
}

// Root in a container usually lacks what a sandbox takes: that is said at start, not with the first learner.
func TestServeSaysWhichCapabilitiesAreMissing(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv (util-linux) takes the capability away")
	}
	cmd := exec.CommandContext(bounded(t), "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin",
		filepath.Join(binaries, "gateway"), "serve", "-config", "none.yaml")
	cmd.Env = append(os.Environ(), "ROCKPOOL_SERVER_PORT=0", "ROCKPOOL_ORCHESTRATOR_DATADIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if exitCode(err) <= 0 || !strings.Contains(string(out), "it lacks the capabilities CAP_SYS_ADMIN (") {
		t.Errorf("exit %d: %s", exitCode(err), out)
	}
}

func TestADataDirectoryHasOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := start(t, func(o *service.Options) { o.Dir = dir })
	cmd := exec.CommandContext(bounded(t), filepath.Join(binaries, "gateway"), "serve", "-config", filepath.Join(dir, "none.yaml"))
	cmd.Env = append(os.Environ(), "ROCKPOOL_SERVER_PORT=0", "ROCKPOOL_ORCHESTRATOR_DATADIR="+dir)
	out, err := cmd.CombinedOutput()
	if exitCode(err) <= 0 || !strings.Contains(string(out), "in use by another process") {
		t.Errorf("exit %d: %s", exitCode(err), out)
	}
	if _, err := s.Statistics(bounded(t)); err != nil {
		t.Errorf("the first one: %v", err)
	}
}

func TestWrongConfigurationIsListedWhole(t *testing.T) {
	needRoot(t)
	file := filepath.Join(t.TempDir(), "configuration.yaml")
	if err := os.WriteFile(file, []byte("server:\n  prot: 7200\n  port: many\nlogger:\n  level: loud\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for command, all := range map[string][]string{
		"serve": {"server.port", "logger.level"},                // which ignores what it does not know,
		"check": {"server.prot", "server.port", "logger.level"}, // and this does not
	} {
		out, err := exec.CommandContext(bounded(t), filepath.Join(binaries, "gateway"), command, "-config", file).CombinedOutput()
		if exitCode(err) != 2 {
			t.Errorf("%s: exit %d", command, exitCode(err))
		}
		for _, want := range all {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %s is not in %s", command, want, out)
			}
		}
	}
}

func TestOrchestratorAgentDev(t *testing.T) {
	needRoot(t)
	ctx := bounded(t)
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "orchestrator"), "agent", "-dev", "-port", "0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	rest := func() { defer close(drained); _, _ = io.Copy(io.Discard, errs) }
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-drained
		if err := cmd.Wait(); err != nil {
			t.Errorf("the agent's exit: %v", err)
		}
	}()
	var log strings.Builder
	url := ""
	buf := make([]byte, 4096)
	for url == "" {
		n, err := errs.Read(buf)
		if err != nil {
			close(drained)
			t.Fatalf("%v: %s", err, log.String())
		}
		log.Write(buf[:n])
		if _, after, ok := strings.Cut(log.String(), "http://"); ok && strings.ContainsAny(after, " \"\n") {
			url = "http://" + after[:strings.IndexAny(after, " \"\n")]
		}
	}
	go rest()
	get := func(path string) string {
		t.Helper()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, url+path, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, b)
		}
		return string(b)
	}
	if l := get("/v1/status/leader"); !strings.Contains(l, ":") {
		t.Errorf("leader %q", l)
	}
	job := `{"Job":{"ID":"hello","Name":"hello","Type":"batch","Datacenters":["dc1"],"TaskGroups":[{"Name":"g","Count":1,"Tasks":[` +
		`{"Name":"t","Driver":"docker","Config":{"image":"host","command":"sleep","args":["infinity"]},"Resources":{"CPU":50,"MemoryMB":32}}]}]}}`
	req, _ := http.NewRequestWithContext(ctx, http.MethodPut, url+"/v1/jobs", strings.NewReader(job))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("register: %d", resp.StatusCode)
	}
	// A blocking query waits for the change, so this asks only as often as something changes.
	for index := "0"; ; {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/job/hello/allocations?wait=5s&index=%s", url, index), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(body), `"ClientStatus":"running"`) {
			break
		}
		if strings.Contains(string(body), `"ClientStatus":"failed"`) {
			t.Fatalf("%s", body)
		}
		index = resp.Header.Get("X-Nomad-Index")
	}
}
