package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
)

const (
	// startTimeout bounds how long the engine may take to start a program.
	startTimeout = 30 * time.Second
	// drainTimeout bounds how long the engine may go on sending after all of an execution has ended.
	drainTimeout = 10 * time.Second
	// serviceDrain is how long the output of a program is waited for that has left a service behind, which holds it open.
	serviceDrain = 200 * time.Millisecond
)

// detachKeys keep a terminal's input to itself: the engine would let go of it at ctrl-p ctrl-q, and cannot be told not to look for any keys.
var detachKeys = strings.TrimSuffix(strings.Repeat("ctrl-^,", 32), ",")

// Exec runs a program inside. It sees the task's own variables, not those that describe the placement.
func (t *task) Exec(ctx context.Context, spec driver.ExecSpec) (driver.Execution, error) {
	if len(spec.Argv) == 0 {
		return nil, fmt.Errorf("empty command: %w", driver.ErrNoCommand)
	}
	m := newMeter(spec.OutputLimit)
	if spec.TTY && spec.SplitStderr {
		return t.execApart(ctx, spec, m)
	}
	e, err := t.exec(ctx, spec, m, m)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// exec has the engine start one program. A meter each counts its streams.
func (t *task) exec(ctx context.Context, spec driver.ExecSpec, stdout, stderr *meter) (*execution, error) {
	select {
	case t.starting <- struct{}{}:
		defer func() { <-t.starting }()
	case <-ctx.Done():
		return nil, fmt.Errorf("exec %s: %w", spec.Argv[0], context.Cause(ctx))
	}
	if t.gone() {
		return nil, driver.ErrTaskGone
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	api := t.driver.api
	made, err := api.ExecCreate(ctx, t.id, t.options(spec))
	if err != nil {
		return nil, t.execError(err, spec)
	}
	var oomKills int64
	if t.inside != nil {
		oomKills = t.inside.group.oomKills()
	}
	conn, err := api.ExecAttach(ctx, made.ID, client.ExecAttachOptions{TTY: spec.TTY})
	if err != nil {
		return nil, t.execError(err, spec)
	}
	e, err := newExecution(t, spec, made.ID, conn.HijackedResponse, stdout, stderr)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("exec %s: %w", spec.Argv[0], err)
	}
	if err := e.begin(ctx, oomKills); err != nil {
		return nil, err
	}
	return e, nil
}

func (t *task) options(spec driver.ExecSpec) client.ExecCreateOptions {
	env := slices.Clone(spec.Env)
	for _, k := range t.placement {
		if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, k+"=") }) {
			env = append(env, k) // without "=" the engine leaves it out
		}
	}
	user := spec.User
	if user == "" {
		user = "0"
	}
	return client.ExecCreateOptions{User: user, TTY: spec.TTY, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		DetachKeys: detachKeys, Env: env, WorkingDir: spec.Dir, Cmd: spec.Argv}
}

func (t *task) execError(err error, spec driver.ExecSpec) error {
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) { // there is no such container, or it does not run
		return fmt.Errorf("exec %s: %w: %w", spec.Argv[0], driver.ErrTaskGone, err)
	}
	return t.driver.explain(err, "exec "+spec.Argv[0])
}

// execution is a program that the engine runs inside a container.
type execution struct {
	task           *task
	spec           driver.ExecSpec
	id             string
	conn           client.HijackedResponse
	meter          *meter
	stdout, stderr *os.File // our ends; stderr is nil on a terminal
	sinks          []*sink
	program        *program // nil = its processes cannot be reached
	begun          time.Time
	streamed       chan struct{} // closed when all output was read
	done           chan struct{}

	mu      sync.Mutex
	verdict sandbox.Verdict // of what the node ended it for; "" = nothing
	sent    int             // the last signal sent
	cut     bool            // its task ended, or was let go
	ended   bool
	lost    error // some of its output was; valid after streamed
	result  driver.ExecResult
	fate    error
}

func newExecution(t *task, spec driver.ExecSpec, id string, conn client.HijackedResponse, stdout, stderr *meter) (*execution, error) {
	e := &execution{task: t, spec: spec, id: id, conn: conn, meter: stdout, streamed: make(chan struct{}), done: make(chan struct{})}
	pipe := func(ours **os.File, m *meter) error {
		r, w, err := os.Pipe()
		if err == nil {
			*ours = r
			e.sinks = append(e.sinks, &sink{meter: m, pipe: w})
		}
		return err
	}
	err := pipe(&e.stdout, stdout)
	if err == nil && !spec.TTY {
		err = pipe(&e.stderr, stderr)
	}
	if err != nil {
		e.closeSinks()
	}
	return e, err
}

func (e *execution) closeSinks() {
	for _, s := range e.sinks {
		_ = s.pipe.Close()
	}
}

// begin waits until the program runs, and takes it over. The kernel had killed oomKills processes of the container for memory before it was started.
func (e *execution) begin(ctx context.Context, oomKills int64) error {
	e.task.driver.goroutines.Go(e.read)
	pid, err := e.started(ctx)
	if err == nil && e.task.inside != nil {
		e.program, err = e.task.inside.admit(ctx, pid, ident.New(), oomKills)
		if errors.Is(err, os.ErrNotExist) { // with the container's own control group
			err = driver.ErrTaskGone
		} else if err != nil { // it runs, and nothing could end it but this
			err = errors.Join(err, e.task.abandon())
		}
	}
	if err != nil {
		e.conn.Close()
		e.closeSinks()
		_ = e.stdout.Close()
		if e.stderr != nil {
			_ = e.stderr.Close()
		}
		return fmt.Errorf("exec %s: %w", e.spec.Argv[0], err)
	}
	e.begun = time.Now()
	if e.spec.TTY && (e.spec.Width > 0 || e.spec.Height > 0) {
		_ = e.Resize(e.spec.Width, e.spec.Height) // one that has ended already needs no size
	}
	t := e.task
	t.mu.Lock()
	gone := t.stopping
	t.executions[e] = true
	t.mu.Unlock()
	t.driver.goroutines.Go(e.supervise)
	if gone {
		e.cutOff()
	}
	return nil
}

// started waits until the engine has started the program. When it cannot, it says why in place of the output.
func (e *execution) started(ctx context.Context) (pid int, err error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		r, err := e.task.driver.api.ExecInspect(ctx, e.id, client.ExecInspectOptions{})
		switch {
		case err != nil:
			return 0, e.task.execError(err, e.spec)
		case r.PID > 0:
			return r.PID, nil
		case !r.Running && r.ExitCode != 0:
			return 0, e.refused(r.ExitCode)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// refused tells the engine's reason why a program did not start.
func (e *execution) refused(code int) error {
	var reason strings.Builder
	for _, f := range []*os.File{e.stdout, e.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(askTimeout))
			text, _ := io.ReadAll(io.LimitReader(f, maxEngineError))
			reason.Write(text)
		}
	}
	text := strings.TrimSpace(reason.String())
	switch {
	case code == 127, strings.Contains(text, "exec: \""+e.spec.Argv[0]+"\""):
		return fmt.Errorf("%w: %s", driver.ErrNoCommand, text)
	case text == "":
		text = "code " + strconv.Itoa(code)
	}
	return fmt.Errorf("the engine could not start it: %s", text)
}

// read takes the output from the engine until it ends.
func (e *execution) read() {
	var err error
	if e.spec.TTY {
		_, err = io.Copy(e.sinks[0], e.conn.Reader)
	} else {
		err = split(e.conn.Reader, e.sinks[0], e.sinks[1])
	}
	e.closeSinks()
	e.mu.Lock()
	e.lost = err
	e.mu.Unlock()
	close(e.streamed)
}

// supervise holds the execution to its limits and makes its outcome known. The end of the main process ends all of it, whoever holds its streams.
func (e *execution) supervise() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.task.driver.life))
	defer cancel()
	ended := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() { defer close(ended); e.await(ctx) })
	e.watch(ctx, ended)
	cancel()
	if e.program != nil && !e.spec.Background {
		clean, stop := context.WithTimeout(context.Background(), removeTimeout)
		if err := e.program.kill(clean); err != nil {
			e.task.driver.cfg.Log.WithError(err).Error("an execution could not be ended whole")
		}
		stop()
	}
	patience := time.NewTimer(e.drain())
	select {
	case <-e.streamed:
	case <-patience.C:
		e.closeSinks() // whoever should have read does not
		e.conn.Close()
		<-e.streamed
		e.mu.Lock()
		if e.spec.Background {
			e.lost = nil
		}
		e.mu.Unlock()
	}
	patience.Stop()
	waiting.Wait()
	e.finish()
	e.conn.Close()
	if e.program != nil {
		e.program.close()
	}
	t := e.task
	t.mu.Lock()
	delete(t.executions, e)
	t.mu.Unlock()
	close(e.done)
}

func (e *execution) drain() time.Duration {
	if e.spec.Background {
		return serviceDrain
	}
	return drainTimeout
}

// await waits for the end of the main process: by its descriptor, or by asking the engine, at once when the output has ended.
func (e *execution) await(ctx context.Context) {
	if e.program != nil {
		_ = e.program.wait()
		return
	}
	for pause := time.Second; ; pause = min(pause, time.Second) {
		select {
		case <-e.streamed:
			pause = 5 * time.Millisecond
		default:
		}
		if r, err := e.task.driver.api.ExecInspect(ctx, e.id, client.ExecInspectOptions{}); err != nil || !r.Running {
			return
		}
		select {
		case <-time.After(pause):
		case <-e.streamed:
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// watch waits for the end and enforces the limits until then.
func (e *execution) watch(ctx context.Context, ended <-chan struct{}) {
	var tooLong, look <-chan time.Time
	if e.spec.TimeLimit > 0 {
		timer := time.NewTimer(e.spec.TimeLimit)
		defer timer.Stop()
		tooLong = timer.C
	}
	if e.spec.CPULimit > 0 && e.program != nil {
		ticker := time.NewTicker(min(max(e.spec.CPULimit/20, 5*time.Millisecond), 250*time.Millisecond))
		defer ticker.Stop()
		look = ticker.C
	}
	over, streamed := e.meter.over, e.streamed
	var kill <-chan time.Time
	limit := func(v sandbox.Verdict) {
		e.mu.Lock()
		first := e.verdict == ""
		if first {
			e.verdict = v
		}
		e.mu.Unlock()
		if !first {
			return
		}
		if e.spec.Grace > 0 && e.program != nil {
			_ = e.program.signal(int(syscall.SIGQUIT))
			kill = time.After(e.spec.Grace)
			return
		}
		_ = e.kill(ctx)
	}
	for {
		select {
		case <-ended:
			return
		case <-streamed:
			streamed = nil
			if e.program != nil && e.program.writes() {
				e.mu.Lock()
				e.lost = errors.New("the connection to the engine was lost, and output with it")
				e.mu.Unlock()
				_ = e.kill(ctx)
			}
		case <-tooLong:
			limit(sandbox.VerdictTime)
		case <-look:
			if e.program.measure().cpu > e.spec.CPULimit {
				limit(sandbox.VerdictCPU)
			}
		case <-over:
			over = nil
			limit(sandbox.VerdictOutput)
		case <-kill:
			_ = e.kill(ctx)
		}
	}
}

// finish asks the engine for the exit code, and the kernel for everything else.
func (e *execution) finish() {
	code, err := e.exitCode()
	r := driver.ExecResult{ExitCode: code, WallTime: time.Since(e.begun), OutputBytes: e.meter.total()}
	var m measured
	var signal int
	var told bool
	if e.program != nil {
		m = e.program.measure()
		signal, told = e.program.endedBy()
	}
	r.CPUTime, r.PeakMemory, r.OOMKilled = m.cpu, m.peak, m.oomKilled
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
	killed := 128 + int(syscall.SIGKILL)
	switch {
	case told:
		r.Signal = signal
	case e.sent != 0 && code == 128+e.sent:
		r.Signal = e.sent
	case code == killed && (m.oomKilled || e.verdict != ""):
		r.Signal = int(syscall.SIGKILL)
	}
	switch {
	case m.oomKilled && code == killed && (r.Signal != 0 || !told) && e.verdict == "":
		r.Verdict = string(sandbox.VerdictMemory)
	case e.verdict != "":
		r.Verdict = string(e.verdict)
	case r.Signal != 0:
		r.Verdict = string(sandbox.VerdictSignal)
	default:
		r.Verdict = string(sandbox.VerdictExit)
	}
	switch {
	case e.cut:
		e.fate = fmt.Errorf("execution was cut off: %w", driver.ErrTaskGone)
	case err != nil:
		e.fate = fmt.Errorf("how the execution ended is not known: %w", err)
	case e.lost != nil && e.verdict == "":
		e.fate = e.lost
	default:
		e.result = r
	}
}

// exitCode asks for the exit code, which the engine knows a moment after the program has ended.
func (e *execution) exitCode() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		r, err := e.task.driver.api.ExecInspect(ctx, e.id, client.ExecInspectOptions{})
		if err != nil {
			return 0, e.task.driver.explain(err, "ask for the exit code")
		}
		if !r.Running {
			return r.ExitCode, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, errors.New("the engine says that it is still running")
		}
	}
}

func (e *execution) Stdin() io.WriteCloser { return input{e} }
func (e *execution) Stdout() io.Reader     { return e.stdout }
func (e *execution) Done() <-chan struct{} { return e.done }

func (e *execution) Stderr() io.Reader {
	if e.stderr == nil {
		return nil
	}
	return e.stderr
}

func (e *execution) Resize(w, h uint16) error {
	if !e.spec.TTY {
		return driver.ErrNotSupported
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	_, err := e.task.driver.api.ExecResize(ctx, e.id, client.ExecResizeOptions{Width: uint(w), Height: uint(h)})
	return e.task.driver.explain(err, "resize terminal")
}

// Signal signals the main process. The engine has no such call: it works where the processes are on this machine.
func (e *execution) Signal(n int) error {
	if e.isOver() {
		return nil
	}
	if e.program == nil {
		return fmt.Errorf("signal execution: %w: the engine is on another machine, or its runtime hides processes; the execution can only be killed", driver.ErrNotSupported)
	}
	e.mu.Lock()
	e.sent = n
	e.mu.Unlock()
	if err := e.program.signal(n); err != nil {
		return fmt.Errorf("signal execution: %w", err)
	}
	return nil
}

// Kill kills all of the execution; where its processes cannot be reached, the whole container.
func (e *execution) Kill() error {
	if e.isOver() {
		return nil
	}
	e.mu.Lock()
	if e.verdict == "" {
		e.verdict = sandbox.VerdictKilled
	}
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return e.kill(ctx)
}

func (e *execution) kill(ctx context.Context) error {
	if e.program == nil {
		return e.task.abandon()
	}
	return e.program.kill(ctx)
}

// cutOff ends the execution because its task ends, or is let go.
func (e *execution) cutOff() {
	e.mu.Lock()
	e.cut = e.cut || !e.ended
	e.mu.Unlock()
	if e.program != nil && !e.isOver() {
		ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
		defer cancel()
		_ = e.program.kill(ctx)
	}
	e.conn.Close()
}

func (e *execution) isOver() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended
}

func (e *execution) Result() (driver.ExecResult, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.result, e.fate
}

// input is the program's stdin. The end of a terminal's is a character.
type input struct{ e *execution }

func (i input) Write(p []byte) (int, error) { return i.e.conn.Conn.Write(p) }

func (i input) Close() error {
	if i.e.spec.TTY {
		_, err := i.e.conn.Conn.Write([]byte{0x04})
		return err
	}
	return i.e.conn.CloseWrite()
}
