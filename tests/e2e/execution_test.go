package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/tests/platform"
)

func TestDemo(t *testing.T) {
	needRoot(t)
	cmd := exec.CommandContext(bounded(t), filepath.Join(binaries, "demo"), "-gateway", filepath.Join(binaries, "gateway"), "-port", "0", "-once")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out, []byte("proved:")); n != 10 {
		t.Errorf("%d steps proved something, want 10", n)
	}
}

func TestWhatAProgramSees(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 128)
	r := claim(ctx, t, s, 10)
	for _, c := range []struct{ name, command, stdout, stderr string }{
		{"the unprivileged user", "whoami", "user\n", ""},
		{"the working directory", "pwd", "/workspace\n", ""},
		{"its environment", "env | grep -c -e '^CODEOCEAN=true$'; env | grep -c -e '^NOMAD_' -e '^AWS'", "1\n0\n", ""},
		{"data is not code", `printf '%s\n' '$HOME "x" \t'`, "$HOME \"x\" \\t\n", ""},
		{"three descriptors", "ls /proc/self/fd | wc -l", "4\n", ""}, // and the one of ls itself
		{"no sys", "ls /sys 2>/dev/null | wc -l", "0\n", ""},
		{"no network", "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '", "lo\n", ""},
		{"gcc", "echo 'int main(){return 0;}' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a && echo built", "built\n", ""},
		{"python", "python3 -c 'import json,ssl,subprocess,threading; print(6*7)'", "42\n", ""},
		{"no capability", "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | awk '{print $2}' | sort -u", "0000000000000000\n", ""},
		{"no secrets of the node", "cat /etc/shadow /root/.ssh/id_rsa 2>/dev/null; ls /var/lib/rockpool 2>/dev/null; echo none", "none\n", ""},
		{"streams apart", "echo out; echo err >&2", "out\n", "err\n"},
	} {
		o := run(ctx, t, s, r, c.command)
		out, errs := strings.ReplaceAll(o.Stdout, "\r\n", "\n"), strings.ReplaceAll(o.Stderr, "\r\n", "\n")
		if out != c.stdout || errs != c.stderr {
			t.Errorf("%s: stdout %q, stderr %q, want %q, %q", c.name, out, errs, c.stdout, c.stderr)
		}
	}
	for want, command := range map[int]string{0: "true", 3: "exit 3", 255: "exit 255", 143: "kill -TERM $$", 127: "no-such-program"} {
		if o := run(ctx, t, s, r, command); o.Final.Code != want {
			t.Errorf("%s: exit %d, want %d", command, o.Final.Code, want)
		}
	}
}

func TestSeveralExecutionsAtOnce(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 256)
	r := claim(ctx, t, s, 10)
	g, ctx := errgroup.WithContext(ctx)
	for i := range 8 {
		g.Go(func() error {
			session, err := s.Start(ctx, r, platform.Execution{Command: "read x; seq 1 20000; echo got $x", TimeLimit: 30})
			if err != nil {
				return err
			}
			defer session.Abort()
			if err := session.Send(fmt.Sprintf("%d\n", i)); err != nil {
				return err
			}
			o, err := session.Wait(ctx)
			l := lines(o.Stdout)
			if err != nil || o.Final.Type != "exit" || len(l) != 20002 || l[20000] != "20000" || l[20001] != fmt.Sprintf("got %d", i) {
				return fmt.Errorf("execution %d: %d lines, end %+v, %w", i, len(l), o.Final, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A client that vanishes, and one that stops reading, must cost neither memory nor a process that goes on.
func TestClientsThatMisbehave(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 128)
	r := claim(ctx, t, s, 10)
	run(ctx, t, s, r, "true")
	before := residentKB(t, s.PID())

	deaf, err := s.Start(ctx, r, platform.Execution{Command: "yes rockpool", TimeLimit: 30})
	if err != nil {
		t.Fatal(err)
	}
	run(ctx, t, s, r, "sleep 2") // what yes prints meanwhile has nowhere to go
	if grown := residentKB(t, s.PID()) - before; grown > 64<<10 {
		t.Errorf("a client that does not read cost %d KB", grown)
	}
	deaf.Abort()

	gone, err := s.Start(ctx, r, platform.Execution{Command: "sleep 1000"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := gone.Next(ctx); err != nil || m.Type != "start" {
		t.Fatalf("%+v %v", m, err)
	}
	gone.Abort()
	// Both must be gone within the grace period of 3 s after the quit signal.
	o := run(ctx, t, s, r, "for i in $(seq 100); do grep -s -l -e '^yes' -e '^sleep 1000' -a /proc/[0-9]*/comm >/dev/null || { echo gone; break; }; read -t 0.1; done < <(sleep 20)")
	if !strings.Contains(o.Stdout, "gone") {
		t.Errorf("programs of clients that vanished go on: %q", o.Stdout)
	}
}

func TestAnIdleExecutionCostsNothing(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	r := claim(ctx, t, s, 10)
	idle, err := s.Start(ctx, r, platform.Execution{Command: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Abort()
	if m, err := idle.Next(ctx); err != nil || m.Type != "start" {
		t.Fatalf("%+v %v", m, err)
	}
	run(ctx, t, s, r, "sleep 1")
	before := cpuTime(t, s.PID())
	start := time.Now()
	run(ctx, t, s, r, "sleep 3")
	used, wall := cpuTime(t, s.PID())-before, time.Since(start)
	if used > wall/20 {
		t.Errorf("the service used %s of CPU in %s with an idle execution", used, wall)
	}
}

func TestStdinIsEchoedAndControlBytesAct(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	r := claim(ctx, t, s, 10)
	session, err := s.Start(ctx, r, platform.Execution{Command: "cat", TimeLimit: 20})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Abort()
	if err := session.Send("hello\n"); err != nil {
		t.Fatal(err)
	}
	sent := false
	var seen strings.Builder
	o, err := session.WaitFunc(ctx, func(m platform.Message) {
		seen.WriteString(m.Text)
		if !sent && strings.Count(seen.String(), "hello") == 2 {
			sent = true
			if err := session.Send("\x04"); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || o.Stdout != "hello\r\nhello\r\n" || o.Final.Type != "exit" || o.Final.Code != 0 {
		t.Errorf("stdout %q, end %+v, %v", o.Stdout, o.Final, err)
	}
}

func TestTheRunnerIsDeletedDuringARun(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	r := claim(ctx, t, s, 10)
	session, err := s.Start(ctx, r, platform.Execution{Command: "sleep 100"})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Abort()
	if _, err := session.Next(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(ctx, r); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := session.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == "error" {
			if m.Text != "the allocation stopped as expected" {
				t.Errorf("the error text is %q", m.Text)
			}
			return
		}
		if m.Type != "stdout" && m.Type != "stderr" {
			t.Fatalf("unexpected %+v", m)
		}
	}
}

func TestAClientThatStops(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	r := claim(ctx, t, s, 10)
	session, err := s.Start(ctx, r, platform.Execution{Command: "trap '' INT TERM QUIT; while :; do sleep 1; done"})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Abort()
	if _, err := session.Next(ctx); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := session.Stop(); err != nil {
		t.Fatal(err)
	}
	if o, err := session.Wait(ctx); o.Close != 1000 || time.Since(start) > time.Second {
		t.Errorf("close %d after %s: %v", o.Close, time.Since(start), err)
	}
	// The runner stays usable.
	if o := run(ctx, t, s, r, "echo again"); !strings.Contains(o.Stdout, "again") {
		t.Errorf("%+v", o)
	}
}

func residentKB(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(data)) {
		if f := strings.Fields(l); f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
