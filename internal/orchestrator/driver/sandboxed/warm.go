package sandboxed

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// metaWarmUp is the key of a task's meta that says which interpreter waits in it for a program; see docs/native-api.md.
const metaWarmUp = "rockpool_warmup"

const (
	warmWait  = 10 * time.Second       // a task is started without an interpreter that needs longer
	warmLeast = 2 * time.Second        // that one gets after executions; more where the first of the task, before any program could tamper with it, took long
	warmDelay = 250 * time.Millisecond // without an execution, before there is an interpreter again: many tasks have but one execution
)

// warmUp is what the meta says: the interpreter, and which executions it is for.
type warmUp struct {
	Command []string // of a shell's line, before the program's file
	Imports []string // modules to be imported before
	Env     []string // of these executions, NAME=value
	User    string
	TTY     bool
	Split   bool // stderr apart even on a terminal
}

// Warmer is implemented by sandboxes in which an interpreter can wait.
type Warmer interface {
	Warm(ctx context.Context, spec sandbox.WarmSpec) error
}

// warmUpOf reads a task's meta; nil = it asks for none.
func warmUpOf(t *model.Task) (*warmUp, error) {
	text, ok := t.Meta[metaWarmUp]
	if !ok || text == "" {
		return nil, nil
	}
	var w warmUp
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "task meta %q: it is a JSON object with Command, Imports, Env, User, TTY and Split", metaWarmUp)
	}
	if err := (sandbox.WarmSpec{Command: w.Command, Imports: w.Imports, Env: w.Env}).Check(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "task meta %q: %v", metaWarmUp, err)
	}
	return &w, nil
}

// warm has an interpreter wait, which has to come to that within a time.
func (t *task) warm(ctx context.Context, within time.Duration) error {
	w, ok := t.sandbox.(Warmer)
	if !ok {
		return driver.ErrNotSupported
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return w.Warm(ctx, sandbox.WarmSpec{Command: t.warmUp.Command, Imports: t.warmUp.Imports, User: t.warmUp.User, TTY: t.warmUp.TTY,
		MergeStderr: t.warmUp.TTY && !t.warmUp.Split, Env: t.warmEnv(ctx)})
}

// warmEnv are the variables of the executions that an interpreter waits for. Of a name that comes twice the last counts.
func (t *task) warmEnv(ctx context.Context) []string {
	return slices.Concat(t.accounts.environment(ctx, t.sandbox.Files(), t.warmUp.User), t.env, t.warmUp.Env)
}

// warmFirst warms a task up that starts. That it cannot be is told, and no error: programs start without. Where starts wait for processors the task is there without, and
// gets its interpreter when the node has time.
func (t *task) warmFirst(ctx context.Context) {
	if t.warmUp == nil {
		return
	}
	if t.starts.crowded() {
		t.warmers.Go(func() {
			ctx, cancel := t.lifetime()
			defer cancel()
			t.warmInTurn(ctx, 0)
		})
		return
	}
	begun := time.Now()
	if err := t.warm(ctx, warmWait); err != nil {
		t.cfg.Emit("Not warmed up: " + err.Error())
		return
	}
	t.warmTook = time.Since(begun)
}

// warmAgain has another interpreter wait some time after the end of an execution, unless there is another execution by then. user is its; nil: none has begun yet.
func (t *task) warmAgain(after Execution, user string) {
	if t.warmUp == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun++
	t.others = t.others || user != t.warmUp.User
	turn := t.begun
	if t.stopping || t.over {
		return
	}
	t.warmers.Go(func() {
		ctx, cancel := t.lifetime()
		defer cancel()
		if after != nil {
			select {
			case <-after.Done():
			case <-ctx.Done():
				return
			}
		}
		pause := time.NewTimer(warmDelay)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		t.warmInTurn(ctx, turn)
	})
}

// lifetime is over when the task is, or is let go.
func (t *task) lifetime() (ctx context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(context.Background())
	ended := make(chan struct{})
	t.warmers.Go(func() {
		defer close(ended)
		select {
		case <-t.done:
		case <-t.letGo:
		case <-ctx.Done():
		}
		end(driver.ErrTaskGone)
	})
	return ctx, func() { end(errors.New("it is over")); <-ended }
}

// warmInTurn has an interpreter wait as soon as the node has time for it, unless another execution than the turn's has begun by then. Turn 0 is before the first.
func (t *task) warmInTurn(ctx context.Context, turn int) {
	if !t.due(turn) {
		return
	}
	done, err := t.starts.wait(ctx)
	if err != nil {
		return
	}
	defer done()
	if !t.due(turn) || turn > 0 && t.couldTamper() {
		return
	}
	t.mu.Lock()
	within := min(max(warmLeast, 4*t.warmTook), warmWait)
	t.mu.Unlock()
	if turn == 0 {
		within = warmWait
	}
	begun := time.Now()
	if err := t.warm(ctx, within); err == nil && turn == 0 { // otherwise programs start without
		t.mu.Lock()
		t.warmTook = time.Since(begun)
		t.mu.Unlock()
	}
}

// due reports whether there has been no execution since the turn's.
func (t *task) due(turn int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.begun == turn && !t.stopping
}

// couldTamper reports whether an earlier program may have left code that an interpreter reads before it waits. It would be in the next program although that code had
// been deleted meanwhile, and could work while nothing runs.
func (t *task) couldTamper() bool {
	t.mu.Lock()
	others := t.others
	t.mu.Unlock()
	if others {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), warmLeast)
	defer cancel()
	home, base := "", ""
	for _, v := range t.warmEnv(ctx) {
		switch name, value, _ := strings.Cut(v, "="); name {
		case "HOME":
			home = value
		case "PYTHONUSERBASE":
			base = value
		}
	}
	for _, err := range t.sandbox.Files().List(ctx, cmp.Or(base, path.Join(home, ".local")), false, t.warmUp.User) {
		return !errors.Is(err, driver.ErrNotFound)
	}
	return true
}

// endWarming waits for what warmAgain has begun, and has it begin no more.
func (t *task) endWarming() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.warmers.Wait()
}
