// Package drivertest is the conformance suite of drivers: what the node agent relies on, whatever starts the tasks. A driver's
// own test gives it a [Subject] and calls [Run].
package drivertest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// Subject is a driver under test and how to ask it for things.
type Subject struct {
	// New makes a driver. All drivers of one subject see the same machine: a later one recovers what an earlier one started.
	New func(t *testing.T) driver.Driver
	// Forever is the configuration of a task that runs until it is stopped.
	Forever map[string]any
	// Exits is the configuration of a task that ends soon, with exit code 3.
	Exits map[string]any
	// Wrong is a configuration that Validate refuses, and Names a word of the refusal.
	Wrong map[string]any
	Names string

	// Says is the configuration of a task that writes a text to each stream and ends; nil where tasks write nothing.
	Says func(out, err string) map[string]any
	// SaysOn is that of one that writes 100 lines of growing length, for about a second, and ends; nil where a task with a command ends with its agent.
	SaysOn map[string]any

	// Commands to execute inside a task.
	Cat   []string                       // copies stdin to stdout
	Exit  func(code int) []string        // returns code
	Both  func(out, err string) []string // writes a word to each stream
	Sleep []string                       // runs for at least a minute
	Size  []string                       // after a line of input, writes the terminal's rows and columns
	Env   func(name string) []string     // writes a variable's value; nil where there is no environment
	// Tree starts children that hold stdout open and sleep; nil where there are no processes.
	Tree []string
	// Orphan writes "last" and returns 4, and leaves a child that holds stdout open; nil where there are no processes.
	Orphan []string
	// Copy writes the contents of a file of the working directory to stdout; nil where there are no files.
	Copy func(file string) []string
}

// ShellSubject fills in the commands for drivers whose tasks have a POSIX shell.
func ShellSubject(s Subject) Subject {
	sh := func(script string, args ...string) []string {
		return append([]string{"sh", "-c", script, "sh"}, args...)
	}
	s.Cat = []string{"cat"}
	s.Exit = func(code int) []string { return sh(`exit "$1"`, strconv.Itoa(code)) }
	s.Both = func(out, err string) []string { return sh(`printf %s "$1"; printf %s "$2" >&2`, out, err) }
	s.Sleep = []string{"sleep", "300"}
	s.Size = sh(`read line; stty size`)
	s.Env = func(name string) []string { return sh(`eval "printf %s \"\$$1\""`, name) }
	s.Tree = sh(`sleep 300 & sleep 300 & echo started; wait`)
	s.Orphan = sh(`sleep 300 & printf last; exit 4`)
	s.Copy = func(file string) []string { return []string{"cat", file} }
	return s
}

// Run holds the driver to the suite.
func Run(t *testing.T, s Subject) {
	t.Run("starts, runs and stops", s.lifecycle)
	t.Run("reports the main process's exit code", s.exitCode)
	t.Run("refuses a wrong configuration", s.wrongConfig)
	t.Run("keeps what the main process writes", s.output)
	t.Run("loses nothing of it between two agents", s.outputRecovered)
	t.Run("passes stdin to stdout", s.echo)
	t.Run("passes much data both ways", s.bulk)
	t.Run("reports exit codes", s.exitCodes)
	t.Run("keeps stderr apart", s.splitStderr)
	t.Run("gives a terminal of the asked size", s.terminal)
	t.Run("keeps stderr apart on a terminal", s.terminalSplit)
	t.Run("names a missing command", s.noCommand)
	t.Run("ends by any signal", s.signals)
	t.Run("kills all of an execution", s.killWhole)
	t.Run("ends with its main process", s.heldOpen)
	t.Run("runs several at once", s.several)
	t.Run("sets the environment", s.environment)
	t.Run("shows inside what was written", s.filesInside)
	t.Run("does not know the outcome of what the task took along", s.lost)
	t.Run("recovers a task", s.recover)
	t.Run("does not recover what is gone", s.recoverGone)
	t.Run("cleans up", s.cleanup)
	t.Run("sweeps", s.sweep)
	t.Run("writes, lists and reads files", s.files)
}

// config makes the configuration of a task that was never there before.
func (s Subject) config(t *testing.T, d driver.Driver, c map[string]any) driver.TaskConfig {
	alloc := ident.New()
	task := &model.Task{Name: "task", Driver: d.Name(), Config: maps.Clone(c), Resources: model.Resources{CPU: 100, MemoryMB: 128}}
	return driver.TaskConfig{ID: alloc + ".task.1", AllocID: alloc, JobID: "job", Namespace: "default", Group: "group", Task: task,
		Resources: model.AllocatedTask{CPU: 100, MemoryMB: 128}, DiskMB: 64, StateDir: t.TempDir(), Emit: func(note string) { t.Log(note) },
		Env: map[string]string{"OWN": "task", "NOMAD_ALLOC_ID": alloc}}
}

// open makes a driver that lets go of everything at the end of the test.
func (s Subject) open(t *testing.T) driver.Driver {
	d := s.New(t)
	t.Cleanup(func() { detach(t, d) })
	return d
}

func detach(t *testing.T, d driver.Driver) {
	t.Helper()
	if d, ok := d.(driver.Detacher); ok {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := d.Detach(ctx); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
}

func cleanUp(t *testing.T, d driver.Driver, taskID string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := d.Cleanup(ctx, taskID); err != nil {
		t.Errorf("cleanup: %v", err)
	}
}

// start starts a task that is cleaned up at the end of the test.
func (s Subject) start(t *testing.T, d driver.Driver, c map[string]any) (driver.Task, driver.TaskConfig) {
	t.Helper()
	cfg := s.config(t, d, c)
	if err := d.Validate(cfg.Task); err != nil {
		t.Fatalf("validate: %v", err)
	}
	task, err := d.Start(bounded(t), cfg)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() { cleanUp(t, d, cfg.ID) })
	return task, cfg
}

func (s Subject) running(t *testing.T) driver.Task {
	t.Helper()
	task, _ := s.start(t, s.open(t), s.Forever)
	return task
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s did not happen within %v", what, patience)
	}
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// outcome is what an execution wrote and how it ended.
type outcome struct {
	out, err string
	res      driver.ExecResult
	fate     error
}

func exec(t *testing.T, task driver.Task, spec driver.ExecSpec) driver.Execution {
	t.Helper()
	spec.ID = ident.New()
	e, err := task.Exec(bounded(t), spec)
	if err != nil {
		t.Fatalf("exec %q: %v", spec.Argv, err)
	}
	t.Cleanup(func() { _ = e.Kill() })
	return e
}

// finish reads all that an execution writes and waits for its end.
func finish(t *testing.T, e driver.Execution) outcome {
	t.Helper()
	var o outcome
	read := make(chan struct{})
	var wg sync.WaitGroup
	drain := func(r io.Reader, into *string) {
		wg.Go(func() {
			var b bytes.Buffer
			if _, err := io.Copy(&b, r); err != nil {
				t.Errorf("read: %v", err)
			}
			*into = b.String()
		})
	}
	drain(e.Stdout(), &o.out)
	if r := e.Stderr(); r != nil {
		drain(r, &o.err)
	}
	wg.Go(func() { <-e.Done() })
	var waiter sync.WaitGroup
	waiter.Go(func() { wg.Wait(); close(read) })
	await(t, "the end of the execution and its output", read)
	waiter.Wait()
	o.res, o.fate = e.Result()
	return o
}

func run(t *testing.T, task driver.Task, spec driver.ExecSpec) outcome {
	t.Helper()
	e := exec(t, task, spec)
	_ = e.Stdin().Close()
	o := finish(t, e)
	if o.fate != nil {
		t.Fatalf("%q: %v", spec.Argv, o.fate)
	}
	return o
}

func (s Subject) lifecycle(t *testing.T) {
	d := s.open(t)
	if info := d.Fingerprint(bounded(t)); !info.Detected || !info.Healthy || info.HealthDescription == "" {
		t.Fatalf("fingerprint: %+v", info)
	}
	task, _ := s.start(t, d, s.Forever)
	if ended(task.Done()) {
		t.Fatal("it has ended already")
	}
	if _, err := task.Usage(bounded(t)); err != nil {
		t.Errorf("usage: %v", err)
	}
	if err := task.Stop(bounded(t), 0, time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	await(t, "the task's end", task.Done())
	if exit := task.Exit(); exit.Err == nil && exit.ExitCode == 0 {
		t.Errorf("a task that was stopped reports success: %+v", exit)
	}
	if err := task.Stop(bounded(t), 0, time.Second); err != nil {
		t.Errorf("second stop: %v", err)
	}
	if _, err := task.Exec(bounded(t), driver.ExecSpec{ID: "x", Argv: s.Cat}); !errors.Is(err, driver.ErrTaskGone) {
		t.Errorf("exec after the end: %v, want ErrTaskGone", err)
	}
}

func (s Subject) exitCode(t *testing.T) {
	task, _ := s.start(t, s.open(t), s.Exits)
	await(t, "the task's end", task.Done())
	if exit := task.Exit(); exit.Err != nil || exit.ExitCode != 3 || exit.Signal != 0 {
		t.Errorf("%+v, want exit code 3", exit)
	}
}

func (s Subject) wrongConfig(t *testing.T) {
	err := s.open(t).Validate(&model.Task{Name: "task", Config: s.Wrong})
	if err == nil || !strings.Contains(err.Error(), s.Names) {
		t.Errorf("%v does not name %q", err, s.Names)
	}
}

func (s Subject) echo(t *testing.T) {
	task := s.running(t)
	e := exec(t, task, driver.ExecSpec{Argv: s.Cat})
	if _, err := io.WriteString(e.Stdin(), "hello\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(e.Stdout(), got); err != nil || string(got) != "hello\n" {
		t.Fatalf("read %q, %v", got, err)
	}
	if ended(e.Done()) {
		t.Fatal("it has ended though stdin is open")
	}
	_ = e.Stdin().Close()
	if o := finish(t, e); o.fate != nil || o.res.ExitCode != 0 || o.out != "" {
		t.Errorf("%+v", o)
	}
}

func (s Subject) bulk(t *testing.T) {
	task := s.running(t)
	e := exec(t, task, driver.ExecSpec{Argv: s.Cat})
	data := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10) // 1 MiB
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := e.Stdin().Write(data); n != len(data) || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
		_ = e.Stdin().Close()
	})
	o := finish(t, e)
	wg.Wait()
	if o.out != string(data) {
		t.Errorf("%d bytes came back of %d", len(o.out), len(data))
	}
}

func (s Subject) exitCodes(t *testing.T) {
	task := s.running(t)
	for _, code := range []int{0, 1, 42, 255} {
		o := run(t, task, driver.ExecSpec{Argv: s.Exit(code)})
		if o.res.ExitCode != code || o.res.Signal != 0 || o.res.OOMKilled {
			t.Errorf("exit %d: %+v", code, o.res)
		}
		if o.res.WallTime < 0 {
			t.Errorf("wall time %v", o.res.WallTime)
		}
	}
}

func (s Subject) splitStderr(t *testing.T) {
	if o := run(t, s.running(t), driver.ExecSpec{Argv: s.Both("out", "err")}); o.out != "out" || o.err != "err" {
		t.Errorf("stdout %q, stderr %q", o.out, o.err)
	}
}

func (s Subject) terminal(t *testing.T) {
	task := s.running(t)
	e := exec(t, task, driver.ExecSpec{Argv: s.Size, TTY: true, Width: 80, Height: 24})
	if e.Stderr() != nil {
		t.Error("stderr is not merged on a terminal")
	}
	if err := e.Resize(120, 40); err != nil {
		t.Fatalf("resize: %v", err)
	}
	if _, err := io.WriteString(e.Stdin(), "\n"); err != nil {
		t.Fatal(err)
	}
	if o := finish(t, e); !strings.Contains(o.out, "40 120") {
		t.Errorf("terminal says %q", o.out)
	}
}

func (s Subject) terminalSplit(t *testing.T) {
	if o := run(t, s.running(t), driver.ExecSpec{Argv: s.Both("out", "err"), TTY: true, SplitStderr: true}); o.out != "out" || o.err != "err" {
		t.Errorf("stdout %q, stderr %q", o.out, o.err)
	}
}

func (s Subject) noCommand(t *testing.T) {
	task := s.running(t)
	for _, argv := range [][]string{{"no-such-command-here"}, {"/no/such/file"}, nil} {
		if _, err := task.Exec(bounded(t), driver.ExecSpec{ID: ident.New(), Argv: argv}); !errors.Is(err, driver.ErrNoCommand) {
			t.Errorf("%q: %v, want ErrNoCommand", argv, err)
		}
	}
}

// heldOpen: what the main process leaves behind delays neither the end nor the last byte.
func (s Subject) heldOpen(t *testing.T) {
	if s.Orphan == nil {
		t.Skip("this driver has no processes")
	}
	if o := run(t, s.running(t), driver.ExecSpec{Argv: s.Orphan}); o.out != "last" || o.res.ExitCode != 4 {
		t.Errorf("%+v", o)
	}
}

func (s Subject) filesInside(t *testing.T) {
	task := s.running(t)
	files := task.Files()
	if files == nil || s.Copy == nil {
		t.Skip("this driver gives no access to files")
	}
	for _, text := range []string{"first", "second, and longer"} { // the second replaces what was seen of the first
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		if err := w.WriteHeader(&tar.Header{Name: "seen", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, text)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := files.Apply(bounded(t), nil, &archive); err != nil {
			t.Fatalf("apply: %v", err)
		}
		if o := run(t, task, driver.ExecSpec{Argv: s.Copy("seen")}); o.out != text {
			t.Errorf("inside it reads %q, want %q", o.out, text)
		}
		r, info, err := files.Open(bounded(t), "seen", "")
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		b, _ := io.ReadAll(r)
		_ = r.Close()
		if string(b) != text || info.Size != int64(len(text)) {
			t.Errorf("it reads %q, %+v", b, info)
		}
	}
	names := map[string]bool{}
	for f, err := range files.List(bounded(t), ".", false, "") {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		names[f.Name] = true
	}
	if !names["seen"] {
		t.Errorf("listed %v", names)
	}
	if err := files.Apply(bounded(t), []string{"seen"}, nil); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, _, err := files.Open(bounded(t), "seen", ""); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("open what was deleted: %v, want ErrNotFound", err)
	}
}

func (s Subject) killWhole(t *testing.T) {
	task := s.running(t)
	argv := s.Sleep
	if s.Tree != nil {
		argv = s.Tree
	}
	e := exec(t, task, driver.ExecSpec{Argv: argv})
	if s.Tree != nil {
		line := make([]byte, len("started\n"))
		if _, err := io.ReadFull(e.Stdout(), line); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if o := finish(t, e); o.fate == nil && o.res.ExitCode == 0 {
		t.Errorf("killed with success: %+v", o)
	}
}

func (s Subject) environment(t *testing.T) {
	if s.Env == nil {
		t.Skip("this driver's executions have no environment")
	}
	task := s.running(t)
	for name, want := range map[string]string{"OWN": "task", "MORE": "exec", "NOMAD_ALLOC_ID": ""} {
		o := run(t, task, driver.ExecSpec{Argv: s.Env(name), Env: []string{"MORE=exec"}})
		if o.out != want {
			t.Errorf("%s is %q, want %q", name, o.out, want)
		}
	}
}

func (s Subject) lost(t *testing.T) {
	task := s.running(t)
	e := exec(t, task, driver.ExecSpec{Argv: s.Sleep})
	if err := task.Stop(bounded(t), 9, time.Second); err != nil {
		t.Fatal(err)
	}
	if o := finish(t, e); o.fate == nil && o.res.ExitCode == 0 {
		t.Errorf("an execution that was cut off reports success: %+v", o)
	}
}

func (s Subject) recover(t *testing.T) {
	first := s.New(t)
	cfg := s.config(t, first, s.Forever)
	if _, err := first.Start(bounded(t), cfg); err != nil {
		t.Fatalf("start: %v", err)
	}
	detach(t, first)
	second := s.open(t)
	t.Cleanup(func() { cleanUp(t, second, cfg.ID) })
	task, err := second.Recover(bounded(t), cfg)
	if err != nil {
		t.Fatalf("recover: %v", err)
	}
	if ended(task.Done()) {
		t.Fatal("the recovered task has ended")
	}
	if o := run(t, task, driver.ExecSpec{Argv: s.Exit(7)}); o.res.ExitCode != 7 {
		t.Errorf("exec in a recovered task: %+v", o)
	}
	if err := task.Stop(bounded(t), 0, time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	await(t, "the recovered task's end", task.Done())
}

func (s Subject) recoverGone(t *testing.T) {
	d := s.open(t)
	if _, err := d.Recover(bounded(t), s.config(t, d, s.Forever)); err == nil {
		t.Error("recovered what never was")
	}
	task, cfg := s.start(t, d, s.Forever)
	if err := d.Cleanup(bounded(t), cfg.ID); err != nil {
		t.Fatal(err)
	}
	await(t, "the task's end", task.Done())
	if _, err := d.Recover(bounded(t), cfg); err == nil {
		t.Error("recovered what was cleaned up")
	}
}

func (s Subject) cleanup(t *testing.T) {
	d := s.open(t)
	task, cfg := s.start(t, d, s.Forever)
	for range 2 {
		if err := d.Cleanup(bounded(t), cfg.ID); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the task's end", task.Done())
	if err := d.Cleanup(bounded(t), ident.New()+".never.1"); err != nil {
		t.Errorf("cleanup of what never was: %v", err)
	}
}

func (s Subject) sweep(t *testing.T) {
	d := s.open(t)
	sweeper, ok := d.(driver.Sweeper)
	if !ok {
		t.Skip("this driver finds nothing by itself")
	}
	keep, cfg := s.start(t, d, s.Forever)
	drop, _ := s.start(t, d, s.Forever)
	if err := sweeper.Sweep(bounded(t), []string{cfg.ID}); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the swept task", drop.Done())
	if ended(keep.Done()) {
		t.Error("the kept task has ended")
	}
}
