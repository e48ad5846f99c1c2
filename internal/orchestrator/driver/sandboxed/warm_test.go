package sandboxed_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"runtime"
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
			e, err := task.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"exit", "0"}, User: "user"})
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

// heldRuntime has interpreters come to wait when they are let, each by a word.
type heldRuntime struct {
	*fakeRuntime
	begun chan string // ids of sandboxes
	let   chan struct{}
}

func (r heldRuntime) Create(ctx context.Context, spec sandbox.Spec) (sandboxed.Sandbox, error) {
	s, err := r.fakeRuntime.Create(ctx, spec)
	return heldSandbox{s, spec.ID, r}, err
}

type heldSandbox struct {
	sandboxed.Sandbox
	id string
	of heldRuntime
}

func (s heldSandbox) Warm(ctx context.Context, _ sandbox.WarmSpec) error {
	s.of.begun <- s.id
	select {
	case <-s.of.let:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Where starts wait for processors a task is there without its interpreter, and gets it in a calm moment, unless a program came first.
func TestACrowdedNodeStartsTasksWithoutInterpreters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFake()
		r := heldRuntime{fake, make(chan string, 100), make(chan struct{})}
		d := sandboxed.New(sandboxed.Config{Runtime: r, Images: fake}, sandboxed.NameDocker)[0]
		var notes []string
		start := func() driver.Task {
			cfg := warmTask(gatewaysWarmUp, &notes)
			task, err := d.Start(t.Context(), cfg)
			if err != nil {
				t.Error(err)
				return nil
			}
			t.Cleanup(func() {
				if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
					t.Error(err)
				}
			})
			return task
		}
		processors := runtime.GOMAXPROCS(0)
		for range processors { // each of them has one, and waits for its interpreter
			go start()
			synctest.Wait()
			<-r.begun
		}
		begun := time.Now()
		waiting, claimed := start(), start()
		if waiting == nil || claimed == nil || time.Since(begun) > 0 || len(r.begun) > 0 {
			t.Fatalf("a task is there after %v, with %d interpreters more", time.Since(begun), len(r.begun))
		}
		time.Sleep(time.Second)
		if len(r.begun) > 0 {
			t.Error("an interpreter is started while starts wait for processors")
		}
		e, err := claimed.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"sleep", "5m"}, User: "user"})
		if err != nil {
			t.Fatal(err)
		}
		for range processors {
			r.let <- struct{}{}
		}
		synctest.Wait()
		freed := time.Now()
		<-r.begun
		if after := time.Since(freed); after < 40*time.Millisecond || after > 200*time.Millisecond {
			t.Errorf("it gets its interpreter %v after the last start", after)
		}
		r.let <- struct{}{}
		time.Sleep(time.Second)
		if len(r.begun) > 0 {
			t.Error("an interpreter is started beside a program")
		}
		_ = e.Kill()
		<-e.Done()
		freed = time.Now()
		<-r.begun
		if after := time.Since(freed); after < 100*time.Millisecond || after > time.Second {
			t.Errorf("it gets its interpreter %v after its program", after)
		}
		r.let <- struct{}{}
		if len(notes) > 0 {
			t.Errorf("notes: %q", notes)
		}
	})
}

// tampered comes to wait once, and then never: what an earlier program has left keeps it.
type tampered struct {
	sandboxed.Sandbox
	took time.Duration // the first time
	held chan time.Duration
}

func (s *tampered) Warm(ctx context.Context, _ sandbox.WarmSpec) error {
	if took := s.took; took > 0 {
		s.took = 0
		time.Sleep(took)
		return nil
	}
	begun := time.Now()
	<-ctx.Done()
	s.held <- time.Since(begun)
	return ctx.Err()
}

type tamperedRuntime struct {
	*fakeRuntime
	took time.Duration
	held chan time.Duration
}

func (r tamperedRuntime) Create(ctx context.Context, spec sandbox.Spec) (sandboxed.Sandbox, error) {
	s, err := r.fakeRuntime.Create(ctx, spec)
	return &tampered{s, r.took, r.held}, err
}

// Between executions nothing of a tenant's may work for long: a later interpreter gets hardly more time than the first one took, which was nobody's yet.
func TestALaterInterpreterHasLittleTime(t *testing.T) {
	for first, want := range map[time.Duration]time.Duration{20 * time.Millisecond: 2 * time.Second, time.Second: 4 * time.Second, 9 * time.Second: 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			fake := newFake()
			r := tamperedRuntime{fake, first, make(chan time.Duration, 1)}
			d := sandboxed.New(sandboxed.Config{Runtime: r, Images: fake}, sandboxed.NameDocker)[0]
			var notes []string
			cfg := warmTask(gatewaysWarmUp, &notes)
			task, err := d.Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			e, err := task.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"exit", "0"}, User: "user"})
			if err != nil {
				t.Fatal(err)
			}
			_ = e.Stdin().Close()
			_, _ = io.ReadAll(e.Stdout())
			<-e.Done()
			if got := <-r.held; got != want {
				t.Errorf("after a first that took %v one had %v, not %v", first, got, want)
			}
			if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// library has what an earlier program has put where interpreters read code from at their start.
type library struct {
	passwd
	at string
}

func (l library) List(_ context.Context, path string, _ bool, _ string) iter.Seq2[driver.FileInfo, error] {
	return func(yield func(driver.FileInfo, error) bool) {
		if path != l.at {
			yield(driver.FileInfo{}, driver.ErrNotFound)
			return
		}
		_ = yield(driver.FileInfo{Name: "lib", Type: "d"}, nil)
	}
}

type withLibrary struct {
	warmSandbox
	files driver.Files
}

func (s withLibrary) Files() driver.Files { return s.files }

type libraryRuntime struct {
	warmRuntime
	at string
}

func (r libraryRuntime) Create(ctx context.Context, spec sandbox.Spec) (sandboxed.Sandbox, error) {
	s, err := r.fakeRuntime.Create(ctx, spec)
	return withLibrary{warmSandbox{s, r.warmed, nil}, library{at: r.at}}, err
}

// Code of an earlier program would live on in an interpreter that reads it and waits, also beyond its files' removal. So there is none where that can be.
func TestNoneWaitsWhereAnEarlierProgramCouldTamper(t *testing.T) {
	for title, c := range map[string]struct {
		env, user, at string
		want          int
	}{
		"nothing":                   {"CODEOCEAN=true", "user", "", 1},
		"elsewhere":                 {"CODEOCEAN=true", "user", "/home/other/.local", 1},
		"a library of the user's":   {"CODEOCEAN=true", "user", "/srv/user/.local", 0},
		"in another home":           {"HOME=/other", "user", "/other/.local", 0},
		"where the environment has": {"PYTHONUSERBASE=/base", "user", "/base", 0},
		"a program of root's":       {"CODEOCEAN=true", "", "", 0},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFake()
				r := libraryRuntime{warmRuntime{fake, make(chan time.Time, 10)}, c.at}
				d := sandboxed.New(sandboxed.Config{Runtime: r, Images: fake}, sandboxed.NameDocker)[0]
				var notes []string
				cfg := warmTask(strings.Replace(gatewaysWarmUp, "CODEOCEAN=true", c.env, 1), &notes)
				task, err := d.Start(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				<-r.warmed // nobody's code is there yet
				for _, user := range []string{c.user, "user"} {
					e, err := task.Exec(t.Context(), driver.ExecSpec{ID: ident.New(), Argv: []string{"exit", "0"}, User: user})
					if err != nil {
						t.Fatal(err)
					}
					_ = e.Stdin().Close()
					_, _ = io.ReadAll(e.Stdout())
					<-e.Done()
				}
				time.Sleep(time.Minute)
				if n := len(r.warmed); n != c.want {
					t.Errorf("%d wait, not %d", n, c.want)
				}
				if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
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
