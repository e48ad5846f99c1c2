package standin_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/nomad/standin"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
	"rockpool/pkg/nullio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must happen.
const patience = time.Minute

const jobID = "10-6ba7b810-9dad-11d1-80b4-00c04fd430c8"

// rig is the adapter with one runner of a stand-in.
type rig struct {
	testing.TB
	server *standin.Server
	client *nomad.Client
	at     execution.Place
}

func adapter(t testing.TB, s *standin.Server, change ...func(*nomad.Options)) *nomad.Client {
	t.Helper()
	log, err := logging.New(t.Output(), "debug", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	o := nomad.Options{Address: s.URL, Namespace: "default", Template: `job "template-0" {}`}
	for _, f := range change {
		f(&o)
	}
	c, err := nomad.New(o, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// silent is a feed that waits for the first listing.
type silent struct{ first chan []runner.Seen }

func (s silent) All(l []runner.Seen, _ uint64) {
	select {
	case s.first <- l:
	default:
	}
}
func (s silent) Changed(runner.Seen) {}
func (s silent) Gone(string)         {}

func newRig(t testing.TB, o standin.Options) *rig {
	t.Helper()
	s := standin.New(t, o)
	c := adapter(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	feed := silent{make(chan []runner.Seen, 1)}
	var tasks lifecycle.Tasks
	tasks.Go(func() { _ = c.Watch(ctx, feed) })
	t.Cleanup(func() {
		cancel()
		_ = tasks.Wait(context.Background())
	})
	<-feed.first
	if _, err := c.CreateRunner(t.Context(), environment.Environment{ID: 10, Image: "host", CPULimit: 1, MemoryLimit: 64}, jobID, false); err != nil {
		t.Fatal(err)
	}
	return &rig{t, s, c, execution.Place{AllocID: s.AllocID(jobID), NodeID: "n1"}}
}

// result is what an execution came to.
type result struct {
	out, err string
	code     int
	failure  error
}

func (r *rig) exec(spec execution.Spec, input string) result {
	r.Helper()
	stdin := nullio.NewStdin(0)
	if _, err := stdin.Write([]byte(input)); err != nil {
		r.Fatal(err)
	}
	return r.execWith(r.Context(), spec, stdin)
}

func (r *rig) execWith(ctx context.Context, spec execution.Spec, stdin io.Reader) result {
	r.Helper()
	if spec.ID == "" {
		spec.ID = ident.New()
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out, errs bytes.Buffer
	exit, err := r.client.Exec(ctx, r.at, spec, execution.Stdio{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if errors.Is(err, context.DeadlineExceeded) { // one that did not end fails one test, and not those after it
		err = errors.Join(err, r.client.Kill(context.WithoutCancel(ctx), r.at, spec.ID))
	}
	return result{out.String(), errs.String(), exit.Code, err}
}

// clean waits until nothing is left in the runner.
func (r *rig) clean() {
	r.Helper()
	r.eventually("nothing is left in the runner", func() bool {
		return len(r.server.Processes(jobID)) == 0 && len(r.server.FIFOs(jobID)) == 0 && r.server.Execs() == 0
	})
}

func (r *rig) eventually(what string, cond func() bool) {
	r.Helper()
	deadline := time.After(patience) // a reader waits for its writer 15 s
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			r.Fatalf("it never came to this: %s: %v %v", what, r.server.Processes(jobID), r.server.FIFOs(jobID))
		}
	}
}

// keys types a key again and again, as a person does. A shell on its way to executing a program can lose the first.
type keys struct {
	context.Context
	key string
}

func (k keys) Read(p []byte) (int, error) {
	select {
	case <-k.Done():
		return 0, io.EOF
	case <-time.After(100 * time.Millisecond):
		return copy(p, k.key), nil
	}
}

func terminal(command string) execution.Spec {
	return execution.Spec{Command: command, TTY: true, SplitStderr: true, Env: map[string]string{"CODEOCEAN": "true"}}
}

func TestCommandsRunAsTheContractSays(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	strange := "a 'b' \"c\" $d `e`\n\t\\n ü;|&*~! \x01end\n"
	for _, c := range []struct {
		name  string
		spec  execution.Spec
		input string
		want  result
	}{
		{"silence", terminal("true"), "", result{}},
		{"a code", terminal("exit 7"), "", result{code: 7}},
		{"a signal", terminal("kill -TERM $$"), "", result{code: 143}},
		{"killed", terminal("kill -KILL $$"), "", result{code: 137}},
		{"128", terminal("exit 128"), "", result{code: 128}},
		{"output apart", terminal("echo a; echo b >&2"), "", result{out: "a\r\n", err: "b\n"}},
		{"stdout is a terminal and stderr is not", terminal("test -t 0 && test -t 1 && test ! -t 2 && test -p /dev/stderr && echo yes"), "", result{out: "yes\r\n"}},
		{"nobody but the user", terminal("whoami; id -gn; echo $HOME $USER $UID"), "", result{out: "user\r\nuser\r\n/workspace user 4242\r\n"}},
		{"root", execution.Spec{Command: "whoami", TTY: true, SplitStderr: true, Privileged: true}, "", result{out: "root\r\n"}},
		{"the working directory", terminal("pwd"), "", result{out: "/workspace\r\n"}},
		{"variables", execution.Spec{Command: `printf %s "$X"; printf %s "$PLAIN" >&2`, Env: map[string]string{"X": "a 'b' $c; d\ne", "PLAIN": "-n"}, TTY: true, SplitStderr: true}, "",
			result{out: "a 'b' $c; d\r\ne", err: "-n"}},
		{"nothing of the orchestrator's", terminal("env | grep -a -c ^NOMAD_ALLOC; env -0 | grep -z -a -c ^NOMAD_"), "", result{out: "0\r\n0\r\n", code: 1}},
		{"CODEOCEAN", terminal("env | grep ^CODEOCEAN="), "", result{out: "CODEOCEAN=true\r\n"}},
		{"a command as it is", execution.Spec{Command: "printf %s '" + strings.ReplaceAll(strange, "'", `'\''`) + "' | od -An -tx1 | tr -d ' \\n'", TTY: true, SplitStderr: true}, "",
			result{out: fmt.Sprintf("%x", strange)}},
		{"an empty command", terminal(""), "", result{}},
		{"input", terminal("read x; echo got $x"), "abc\n", result{out: "abc\r\ngot abc\r\n"}},
		{"input that nobody reads", terminal("sleep 0.2; exit 3"), "abc\nmore\x04\x04", result{out: "abc\r\nmore", code: 3}},
		{"an end of input that is typed", terminal("cat; echo after"), "x\n\x04", result{out: "x\r\nx\r\nafter\r\n"}},
		{"interrupt", terminal("sleep 100"), "\x03", result{out: "^C", code: 130}},
		{"stderr that is opened again", terminal("echo a > /dev/stderr"), "", result{err: "a\n"}},
		{"a crash says no more than its shell", terminal("bash -c 'kill -SEGV $$'"), "", result{code: 139}},
		{"a terminal left raw", terminal("stty raw -echo; exit 4"), "", result{code: 4}},
		{"without a terminal", execution.Spec{Command: "cat; echo b >&2; exit 5", SplitStderr: true}, "EOF", result{out: "in", err: "b\n", code: 5}},
		{"without a terminal, every byte", execution.Spec{Command: `printf '\000\001\036\377'; printf '\036' >&2`, SplitStderr: true}, "", result{out: "\x00\x01\x1e\xff", err: "\x1e"}},
		{"one terminal for both", execution.Spec{Command: "echo a; echo b >&2", TTY: true}, "", result{out: "a\r\nb\r\n"}},
		{"its kin outlive it, and do not delay it", terminal("{ until [ -e /tmp/over ]; do sleep 0.1; done; } & echo a >&2; exit 6"), "", result{err: "a\n", code: 6}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := *r
			r.TB = t
			var got result
			switch c.input {
			case "EOF":
				got = r.execWith(t.Context(), c.spec, strings.NewReader("in"))
			case "\x03":
				ctx, cancel := context.WithCancel(t.Context())
				got = r.execWith(t.Context(), c.spec, keys{ctx, c.input})
				cancel()
			default:
				got = r.exec(c.spec, c.input)
			}
			if strings.HasPrefix(got.out, "^C") {
				got.out = "^C"
			}
			if got != c.want {
				t.Errorf("got  %q, %q, %d, %v\nwant %q, %q, %d", got.out, got.err, got.code, got.failure, c.want.out, c.want.err, c.want.code)
			}
			if err := os.WriteFile(filepath.Join(r.server.Root(jobID), "tmp/over"), nil, 0o644); err != nil { // for those that outlive it
				t.Error(err)
			}
			r.clean()
		})
	}
}

func TestLargeOutputOfBothKindsIsWhole(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	got := r.exec(terminal("head -c 3000000 /dev/zero >&2 & head -c 5000000 /dev/zero; wait"), "")
	if len(got.out) != 5000000 || len(got.err) != 3000000 || got.code != 0 || got.failure != nil {
		t.Errorf("%d and %d bytes, %d, %v", len(got.out), len(got.err), got.code, got.failure)
	}
	r.clean()
}

func TestInputThatIsNotReadHoldsNothingElseBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	much := strings.NewReader(strings.Repeat("much\n", 4<<20))
	if got := r.execWith(t.Context(), execution.Spec{Command: "sleep 1; echo out; exit 4", SplitStderr: true}, much); got.failure != nil || got.code != 4 || got.out != "out\n" {
		t.Errorf("%+v", got)
	}
	r.clean()
}

// A request that is too long for an argument, or has what no argument can have, says so.
func TestWhatCannotBePassedOnIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	for _, command := range []string{strings.Repeat("x", 130<<10), "a\x00b"} {
		if err := r.client.Fits(execution.Request{Command: command, TTY: true}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.10q: fits: %v", command, err)
		}
		if got := r.exec(terminal(command), ""); !fault.Is(got.failure, fault.Invalid) {
			t.Errorf("%.10q: %+v", command, got)
		}
	}
	if err := r.client.Fits(execution.Request{Command: ": " + strings.Repeat("x", 120<<10), TTY: true}); err != nil {
		t.Errorf("a long one: %v", err)
	}
	if got := r.exec(terminal(": "+strings.Repeat("x", 120<<10)+"; exit 5"), ""); got.code != 5 || got.failure != nil {
		t.Errorf("a long one: %+v", got)
	}
	r.clean()
}

func TestImagesWithoutSetuser(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{Bare: true})
	root := r.server.Root(jobID)
	who := terminal("whoami; id -u; pwd; echo $HOME $USER; exit 9")
	want := result{out: "user\r\n4242\r\n/workspace\r\n/workspace user\r\n", code: 9}
	if got := r.exec(who, ""); got != want {
		t.Errorf("by setpriv: got %+v", got)
	}
	shadow := func(name string) {
		if err := os.Remove(filepath.Join(root, "usr/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	shadow("setpriv")
	if got := r.exec(who, ""); got != want {
		t.Errorf("by su: got %+v, %v", got, got.failure)
	}
	shadow("su")
	if got := r.exec(who, ""); got.out+got.err != "" || got.failure == nil || !strings.Contains(got.failure.Error(), "no setuser, setpriv or su") {
		t.Errorf("by nothing: got %+v", got)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/bash\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := r.exec(who, ""); got.failure == nil || !strings.Contains(got.failure.Error(), "no user user") {
		t.Errorf("without the user: got %+v", got)
	}
	r.clean()
}

func TestAnExitCodeIsNeverInvented(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	const main, reader = "# main", "stderr_"
	only := func(script string) string {
		return map[string]string{main: "CODEOCEAN=true", reader: "# Reads the FIFO"}[script]
	}
	for _, c := range []struct {
		name    string
		command string
		faults  []standin.ExecFault
		want    result // failure is compared by its text; "" = none
		text    string
	}{
		{"close 1000 after the end", "echo a; exit 3", []standin.ExecFault{{Match: only(main), Close: 1000}}, result{out: "a\r\n", code: 3}, ""},
		{"unexpected EOF after the end", "echo a; exit 3", []standin.ExecFault{{Match: only(main), Close: 1006}}, result{out: "a\r\n", code: 3}, ""},
		{"an error's close after the end", "exit 0", []standin.ExecFault{{Match: only(main), Close: 1011, Text: "rpc error: EOF"}}, result{}, ""},
		{"close 1000 at the start", "echo a", []standin.ExecFault{{Match: only(main), Close: 1000, AtStart: true}}, result{}, "without an exit code"},
		{"EOF at the start", "echo a", []standin.ExecFault{{Match: only(main), Close: 1006, AtStart: true}}, result{}, "without an exit code"},
		{"not started yet", "echo a", []standin.ExecFault{{Match: only(main), Close: 1011, AtStart: true, Text: `task "default-task" not started yet`}}, result{}, "not started yet"},
		{"started later", "echo a", []standin.ExecFault{{Match: only(main), Close: 1011, AtStart: true, Times: 2, Text: `task "default-task" not started yet`}}, result{out: "a\r\n"}, ""},
		{"gone", "echo a", []standin.ExecFault{{Match: only(main), Close: 1008, AtStart: true, Text: `Unknown allocation "x"`}}, result{}, "allocation is gone"},
		{"close 1000 while idle", "echo a; sleep 100", []standin.ExecFault{{Match: only(main), Close: 1000, After: 43}}, result{}, "without an exit code"},
		{"EOF in the middle", "echo a; sleep 100", []standin.ExecFault{{Match: only(main), Close: 1006, After: 43}}, result{}, "without an exit code"},
		{"no bash", "true", []standin.ExecFault{{Match: only(main), Noise: "OCI runtime exec failed: exec: \"/bin/bash\": no such file\r\n", Exit: 127}}, result{}, "OCI runtime exec failed"},
		{"another code", "exit 3", []standin.ExecFault{{Match: only(main), WrongCode: 5}}, result{}, "told as 3 and as 5"},
		{"cut off, as since 1.9", "echo a; exit 3", []standin.ExecFault{{Match: only(main), Cut: true}, {Match: only(reader), Cut: true}}, result{out: "a\r\n", code: 3}, ""},
		{"no reader at first", "echo b >&2", []standin.ExecFault{{Match: only(reader), Status: 500, Text: "No cluster leader", Times: 2}}, result{err: "b\n"}, ""},
		{"never a reader", "sleep 100", []standin.ExecFault{{Match: only(reader), Status: 500, Text: "failed"}}, result{}, "stderr"},
		{"a reader that breaks", "echo b >&2; sleep 100", []standin.ExecFault{{Match: only(reader), Close: 1006, After: 2}}, result{}, "stderr"},
		{"a reader that ends at once", "sleep 100", []standin.ExecFault{{Match: only(reader), Noise: "x", Exit: 1}}, result{}, "stderr"},
		{"too busy at first", "echo a", []standin.ExecFault{{Match: only(main), Status: 429, Text: "too many requests", Times: 1}}, result{out: "a\r\n"}, ""},
		{"refused", "echo a", []standin.ExecFault{{Match: only(main), Status: 403, Text: "Permission denied"}}, result{}, "does not allow"},
		{"a shell that is killed", "kill -KILL $PPID; sleep 100", nil, result{code: 137}, ""},
		{"a shell that is killed, told as 128", "kill -KILL $PPID; sleep 100", []standin.ExecFault{{Match: only(main), WrongCode: 128}}, result{code: 128}, ""},
		{"a shell that is killed, told as 130", "kill -KILL $PPID; sleep 100", []standin.ExecFault{{Match: only(main), WrongCode: 130}}, result{}, "cut off"},
		{"a shell that is killed, told as 200", "kill -KILL $PPID; sleep 100", []standin.ExecFault{{Match: only(main), WrongCode: 200}}, result{}, "cut off"},
		{"no record of 3", "exit 3", []standin.ExecFault{{Match: only(main), Lose: []string{"stdout", "stderr"}}}, result{}, "cut off"},
		{"no record of Ctrl-C", "kill -INT $$; exit 130", []standin.ExecFault{{Match: only(main), Lose: []string{"stdout", "stderr"}}}, result{}, "cut off"},
		{"no record of 200", "exit 200", []standin.ExecFault{{Match: only(main), Lose: []string{"stdout", "stderr"}}}, result{}, "cut off"},
		{"of 137 that of stdout alone", "exit 137", []standin.ExecFault{{Match: only(main), Lose: []string{"stderr"}}}, result{}, "cut off"},
		{"of 137 that of stderr alone", "exit 137", []standin.ExecFault{{Match: only(main), Lose: []string{"stdout"}}}, result{}, "cut off"},
		{"of 128 that of stdout alone", "exit 128", []standin.ExecFault{{Match: only(main), Lose: []string{"stderr"}}}, result{}, "cut off"},
		{"a shell that is killed when only stderr's record is missing", `p=$PPID; setsid sleep 8 & setsid sh -c "sleep 0.5; kill -KILL $p" & exit 137`,
			[]standin.ExecFault{{Match: only(reader), Lose: []string{"stdout"}}}, result{}, "cut off"},
		{"forged", `m=$(tr '\0' ' ' </proc/$PPID/cmdline | sed -n 's/^.*# main \([0-9a-f]*\).*$/\1/p' | head -1); printf '\036%s:exit:0;' $m; exit 1`, nil, result{}, "told as 0 and as 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := *r
			r.TB = t
			for _, f := range c.faults {
				r.server.FailExec(f)
			}
			spec := terminal(c.command)
			spec.Privileged = true
			// A terminal has one stream, and its script waits long to hear that its record came.
			spec.TTY = !slices.ContainsFunc(c.faults, func(f standin.ExecFault) bool { return f.Lose != nil && f.Match == only(main) })
			began := time.Now()
			got := r.exec(spec, "")
			if took := time.Since(began); strings.Contains(c.name, "stderr's record") && (took < 5*time.Second || took > 20*time.Second) {
				t.Errorf("a record that never comes was waited for %v", took)
			}
			r.server.HealExec()
			failure := got.failure
			got.failure = nil
			if c.text == "stderr" {
				got.err = "" // what came before
			}
			if failure != nil && got.out == "a\r\n" {
				got.out = "" // what came before, or is lost with the connection
			}
			if got != c.want || (failure == nil) != (c.text == "") || failure != nil && !strings.Contains(failure.Error(), c.text) {
				t.Errorf("got  %q, %q, %d, %v\nwant %q, %q, %d, %q", got.out, got.err, got.code, failure, c.want.out, c.want.err, c.want.code, c.text)
			}
			if errors.Is(failure, execution.ErrLeftRunning) {
				t.Error("it was left running")
			}
			if strings.HasPrefix(c.name, "a shell that is killed") {
				return // what it left behind nobody can find
			}
			r.clean()
		})
	}
}

func TestEverythingOfAnExecutionIsKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	for name, command := range map[string]string{
		"deaf":        "trap '' QUIT INT TERM HUP; while :; do sleep 0.1; done",
		"in groups":   "set -m; sleep 100 & sleep 100 & setsid sleep 100 & sleep 100",
		"orphans":     "(sleep 100 & sleep 100 &) ; sleep 100",
		"as the user": "python3 -c 'import os,time\nfor i in range(20): os.fork() or time.sleep(100)' || sleep 100",
		"stopped":     "kill -STOP $$",
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.TB = t
			spec := terminal(command)
			spec.ID = ident.New()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan result, 1)
			var tasks lifecycle.Tasks
			tasks.Go(func() { done <- r.execWith(ctx, spec, nullio.NewStdin(0)) })
			r.eventually("it runs", func() bool {
				return len(r.server.Processes(jobID)) > 5 || name == "stopped" && len(r.server.Processes(jobID)) > 4
			})
			other := terminal("sleep 1; echo whole")
			neighbour := make(chan result, 1)
			tasks.Go(func() { neighbour <- r.execWith(t.Context(), other, nullio.NewStdin(0)) })
			if err := r.client.Kill(t.Context(), r.at, spec.ID); err != nil {
				t.Errorf("kill: %v", err)
			}
			cancel()
			<-done
			if err := r.client.Kill(t.Context(), r.at, spec.ID); err != nil {
				t.Errorf("kill what has ended: %v", err)
			}
			if got := <-neighbour; got.out != "whole\r\n" || got.failure != nil {
				t.Errorf("another execution came to %+v", got)
			}
			r.clean()
		})
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	spec := terminal("trap 'echo got; exit 8' USR1; echo ready; while :; do sleep 0.05; done")
	spec.ID = ident.New()
	done := make(chan result, 1)
	var tasks lifecycle.Tasks
	out := &watched{}
	tasks.Go(func() {
		exit, err := r.client.Exec(t.Context(), r.at, spec, execution.Stdio{Stdin: nullio.NewStdin(0), Stdout: out, Stderr: io.Discard})
		done <- result{code: exit.Code, failure: err}
	})
	r.eventually("it is ready", func() bool { return strings.Contains(out.String(), "ready") })
	// What names no signal must not be taken for the end of everything.
	if err := r.client.Signal(t.Context(), r.at, spec.ID, "SIG"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a signal without a name: %v", err)
	}
	if err := r.client.Signal(t.Context(), r.at, spec.ID, "SIGUSR1"); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.code != 8 || got.failure != nil || out.String() != "ready\r\ngot\r\n" {
		t.Errorf("got %+v, %q", got, out.String())
	}
	if err := r.client.Signal(t.Context(), r.at, spec.ID, "SIGUSR1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("of one that has ended: %v", err)
	}
	r.clean()
}

// What nobody uses must not use the processor.
func TestAnIdleExecutionUsesNoCPU(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	spec := terminal("echo ready; cat")
	spec.ID = ident.New()
	var tasks lifecycle.Tasks
	out := &watched{}
	tasks.Go(func() {
		_, _ = r.client.Exec(ctx, r.at, spec, execution.Stdio{Stdin: nullio.NewStdin(0), Stdout: out, Stderr: io.Discard})
	})
	r.eventually("it is ready", func() bool { return out.String() != "" && len(r.server.FIFOs(jobID)) == 0 })
	before := r.server.CPU(jobID)
	time.Sleep(2 * time.Second) // of doing nothing: what is measured
	if used := r.server.CPU(jobID) - before; used > 0 {
		t.Errorf("%v in 2 s", used)
	}
	if err := r.client.Kill(t.Context(), r.at, spec.ID); err != nil {
		t.Error(err)
	}
	cancel()
	_ = tasks.Wait(t.Context())
	r.clean()
}

// watched can be read while it is written.
type watched struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) { w.mu.Lock(); defer w.mu.Unlock(); return w.b.Write(p) }
func (w *watched) String() string              { w.mu.Lock(); defer w.mu.Unlock(); return w.b.String() }

func archive(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Linkname
		h.Linkname, h.ModTime, h.Format, h.Size = "", time.Unix(0, 0), tar.FormatPAX, int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(content))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func (r *rig) list(path string, recursive, privileged bool) ([]files.Entry, error) {
	var all []files.Entry
	for e, err := range r.client.List(r.Context(), r.at, path, recursive, privileged) {
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	return all, nil
}

// From the request to the exit code, by two execs that really run.
func BenchmarkEchoWithStderrApart(b *testing.B) {
	r := newRig(b, standin.Options{})
	for b.Loop() {
		if got := r.exec(terminal("echo hi"), ""); got != (result{out: "hi\r\n"}) {
			b.Fatal(got)
		}
	}
}
