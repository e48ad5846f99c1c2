package sandboxed_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

const gatewaysWarmUp = `{"Command":["python3"],"Env":["CODEOCEAN=true"],"User":"user","TTY":true,"Split":true}`

func warmTask(meta string, notes *[]string) driver.TaskConfig {
	return driver.TaskConfig{ID: ident.New() + ".task.1", DiskMB: 32, Emit: func(note string) { *notes = append(*notes, note) },
		Env: map[string]string{"NOMAD_META_rockpool_warmup": meta, "COURSE": "42"},
		Task: &model.Task{Name: "task", Meta: map[string]string{"rockpool_warmup": meta},
			Config: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}}}}
}

// An execution such as the gateway's finds an interpreter that waits, from the start and again some time after another.
func TestATaskIsWarmedUp(t *testing.T) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("this machine has no /usr/bin/python3")
	}
	d := opener(t)(t)
	var notes []string
	cfg := warmTask(gatewaysWarmUp, &notes)
	cfg.StateDir = t.TempDir()
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
			t.Error(err)
		}
	}()
	if len(notes) > 0 {
		t.Fatalf("notes: %q", notes)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	program := "import os; assert os.environ['COURSE'] == '42'"
	if err := w.WriteHeader(&tar.Header{Name: "p.py", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(program))
	if err := errors.Join(w.Close(), task.Files().Apply(t.Context(), nil, &archive)); err != nil {
		t.Fatal(err)
	}
	run := func(command string) driver.ExecResult {
		t.Helper()
		e, err := task.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"/bin/bash", "-c", command}, Env: []string{"CODEOCEAN=true"}, User: "user", TTY: true, SplitStderr: true})
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(e.Stdout())
		<-e.Done()
		r, err := e.Result()
		if err != nil || r.ExitCode != 0 {
			t.Fatalf("%s: %+v %v: %s", command, r, err, out)
		}
		return r
	}
	if r := run("python3 p.py"); !r.Warm || r.Cold {
		t.Errorf("the interpreter that waited was not taken: %+v", r)
	}
	if r := run("python3 p.py"); r.Warm || !r.Cold {
		t.Error("there were two")
	}
}

// warmSandbox notes when it is warmed up.
type warmSandbox struct {
	sandboxed.Sandbox
	warmed chan time.Time
	err    error
}

func (s warmSandbox) Warm(ctx context.Context, _ sandbox.WarmSpec) error {
	select {
	case s.warmed <- time.Now():
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.err
}

type warmRuntime struct {
	*fakeRuntime
	warmed chan time.Time
}

func (r warmRuntime) Create(ctx context.Context, spec sandbox.Spec) (sandboxed.Sandbox, error) {
	s, err := r.fakeRuntime.Create(ctx, spec)
	return warmSandbox{s, r.warmed, nil}, err
}

// Another interpreter waits some time after the last execution, one for all of them; none is begun for a task that ends.
func TestATaskIsWarmedUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFake()
		r := warmRuntime{fake, make(chan time.Time, 10)}
		d := sandboxed.New(sandboxed.Config{Runtime: r, Images: fake}, sandboxed.NameDocker)[0]
		var notes []string
		cfg := warmTask(gatewaysWarmUp, &notes)
		task, err := d.Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		<-r.warmed
		run := func() {
			t.Helper()
			e, err := task.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"exit", "0"}})
			if err != nil {
				t.Fatal(err)
			}
			_ = e.Stdin().Close()
			_, _ = io.ReadAll(e.Stdout())
			<-e.Done()
		}
		for range 3 {
			run()
			time.Sleep(100 * time.Millisecond)
		}
		ended := time.Now()
		if pause := (<-r.warmed).Sub(ended); pause < 100*time.Millisecond || pause > time.Second {
			t.Errorf("an interpreter waits again after %v", pause)
		}
		time.Sleep(time.Minute)
		if len(r.warmed) > 0 {
			t.Errorf("%d more for no execution", len(r.warmed))
		}
		run()
		if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if len(r.warmed) > 0 {
			t.Error("one waits for a task that has ended")
		}
	})
}

// A task whose warm-up fails is told about it, and runs without.
func TestATaskThatCannotBeWarmedUpRuns(t *testing.T) {
	d := opener(t)(t)
	var notes []string
	cfg := warmTask(strings.Replace(gatewaysWarmUp, "python3", "python0", 1), &notes)
	cfg.StateDir = t.TempDir()
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
			t.Error(err)
		}
	}()
	if len(notes) != 1 || !strings.HasPrefix(notes[0], "Not warmed up: ") {
		t.Errorf("notes: %q", notes)
	}
	e, err := task.Exec(t.Context(), driver.ExecSpec{ID: "x", Argv: []string{"/bin/bash", "-c", "echo runs"}, User: "user", TTY: true, SplitStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := io.ReadAll(e.Stdout()); string(out) != "runs\r\n" {
		t.Errorf("%q", out)
	}
	<-e.Done()
}

// A runtime without warm-ups starts the task all the same.
func TestWarmUpWhereThereIsNone(t *testing.T) {
	var notes []string
	cfg := warmTask(gatewaysWarmUp, &notes)
	cfg.Task.Config = map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}}
	d := docker(newFake())
	if _, err := d.Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "not supported") {
		t.Errorf("notes: %q", notes)
	}
	if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
		t.Fatal(err)
	}
}

func TestWrongWarmUpsAreRefused(t *testing.T) {
	d := docker(newFake())
	for _, meta := range []string{"{", "[]", `{"Command":["ruby"]}`, `{"Command":["python3;x"]}`, `{}`, `{"Command":["python3"],"Imports":["a b"]}`, `{"Command":["python3"],"Env":["PYTHONPATH=x"]}`} {
		task := &model.Task{Name: "task", Meta: map[string]string{"rockpool_warmup": meta}, Config: map[string]any{"image": "host", "command": "true"}}
		if err := d.Validate(task); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", meta, err)
		}
	}
	if err := d.Validate(&model.Task{Name: "task", Meta: map[string]string{"rockpool_warmup": gatewaysWarmUp}, Config: map[string]any{"image": "host", "command": "true"}}); err != nil {
		t.Error(err)
	}
}
