package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node/tasklog"
	"rockpool/internal/timeline"
)

const (
	defaultKillTimeout = 5 * time.Second
	// killGrace is how long a driver may take to stop a task beyond its kill timeout.
	killGrace = 30 * time.Second
	// recoverTimeout bounds taking back one task.
	recoverTimeout = 30 * time.Second
	// cleanupTimeout bounds one attempt to destroy what is left of a task.
	cleanupTimeout = 30 * time.Second
)

// stopReason is why a task is being killed; it is the cause of the task's context.
type stopReason struct {
	kind   string // type of an event to go ahead of Killing, or empty
	text   string
	fails  bool          // the task counts as failed
	within time.Duration // bounds the task's kill timeout; 0 = not at all
	final  bool          // nothing may go on or begin, neither to clean up nor for who still asks
}

func (s *stopReason) Error() string { return s.text }

// errLetGo is the cause when the agent ends and its tasks stay.
var errLetGo = errors.New("the agent lets go of its tasks")

// taskRunner lives through one task: its starts, its ends, its restarts.
type taskRunner struct {
	name    string
	phase   phase
	alloc   *allocRunner
	gate    latch                   // set when the task may start
	kill    context.CancelCauseFunc // with a *stopReason
	restart chan chan struct{}      // the answer is closed when the old process is gone
	found   latch                   // set once it is known whether an earlier process of the agent left it running

	// guarded by alloc.mu
	record taskRecord
	handle driver.Task // nil while nothing runs
	nomad  map[string]string
	output []*tasklog.Writer // of the incarnation that runs
}

// endsWith reports whether a reason that ends the allocation's tasks ends this one, or whether it is what cleans up after them.
func (t *taskRunner) endsWith(reason *stopReason) bool {
	return t.phase != phasePoststop || reason.final
}

// fate is what became of one incarnation.
type fate int

const (
	again fate = iota // the task shall start once more
	dead              // it never runs again
	letGo             // it is not this process's business any more
)

// run returns dead or letGo. It ends with ctx, whose cause says how; life ends when the agent waits no longer.
func (t *taskRunner) run(life, ctx context.Context) fate {
	if t.state().State == model.TaskDead {
		t.found.set(nil)
		return dead
	}
	task, lost := t.takeBack(ctx)
	t.found.set(nil)
	if lost {
		return dead
	}
	if task == nil {
		select {
		case <-t.gate.done():
		case <-ctx.Done():
			return t.endUnstarted(ctx)
		}
	}
	for {
		f := again
		if task == nil {
			task, f = t.start(ctx)
		}
		if task != nil {
			f = t.supervise(life, ctx, task)
			task = nil
		}
		if f != again {
			return f
		}
	}
}

// takeBack recovers what an earlier process of the agent started. It returns nothing when there was nothing. What is lost did
// nobody knows what, and has failed.
func (t *taskRunner) takeBack(ctx context.Context) (task driver.Task, lost bool) {
	if !t.record.Started {
		t.cleanup(ctx) // the agent may have ended between writing the record and the driver's answer
		return nil, false
	}
	t.alloc.agent.recoveries <- struct{}{}
	defer func() { <-t.alloc.agent.recoveries }()
	// Also what is to be stopped is taken back first: it shall end as well as it can.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), recoverTimeout)
	defer cancel()
	d, cfg, err := t.config()
	if err == nil {
		t.openLogs(&cfg, cfg.Task)
		if err := t.reserveDevices(&cfg); err != nil { // it holds them whatever became of them
			t.alloc.log().WithError(err).WithField("task", t.name).Warn("a task that is taken back has devices that no task would get now")
		}
		cfg.Network, err = t.alloc.network.recover(bounded, t.alloc, d)
	}
	if err == nil {
		if task, err = d.Recover(bounded, cfg); err == nil {
			t.alloc.mu.Lock()
			t.handle = task
			t.alloc.mu.Unlock()
			t.alloc.report(true)
			return task, false
		}
	}
	t.alloc.log().WithError(err).WithField("task", t.name).Warn("task could not be taken back")
	t.die(true, failedRestoring(oneSentence(err)))
	t.cleanup(ctx)
	return nil, true
}

// start starts the next incarnation; without a task it says what becomes of it.
func (t *taskRunner) start(ctx context.Context) (driver.Task, fate) {
	if ctx.Err() != nil { // the turn could come at the same moment
		return nil, t.endUnstarted(ctx)
	}
	task, err := t.tryStart(ctx)
	switch {
	case err == nil:
		return task, again
	case ctx.Err() != nil:
		return nil, t.endUnstarted(ctx)
	}
	t.alloc.log().WithError(err).WithField("task", t.name).Warn("task could not be started")
	if fault.Is(err, fault.Invalid) || fault.Is(err, fault.Unsupported) { // it would fail the same way again
		t.die(true, startFailure(err), notRestarting("Error was unrecoverable"))
		t.cleanup(ctx)
		return nil, dead
	}
	return nil, t.restartOrDie(ctx, startFailure(err))
}

// tryStart waits for its turn and asks the driver.
func (t *taskRunner) tryStart(ctx context.Context) (_ driver.Task, err error) {
	d, cfg, err := t.next()
	if err != nil {
		return nil, err
	}
	span := t.alloc.agent.cfg.Timeline.OfJob(cfg.Namespace, cfg.JobID, timeline.TaskStart)
	span.Text(timeline.AllocID, cfg.AllocID)
	defer func() { span.Fail(err); span.End() }()
	lap := span.Laps()
	t.openLogs(&cfg, cfg.Task)
	defer func() {
		if err != nil {
			t.closeLogs()
		}
	}()
	if p, ok := d.(driver.Preparer); ok {
		if err := p.Prepare(ctx, cfg); err != nil {
			return nil, err
		}
	}
	lap.Done(timeline.TaskPrepare)
	if err := t.turn(ctx); err != nil {
		return nil, err
	}
	if err := t.awaitDevices(ctx, &cfg); err != nil {
		return nil, err
	}
	select {
	case t.alloc.agent.slots <- struct{}{}:
		defer func() { <-t.alloc.agent.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := t.reserveDevices(&cfg); err != nil {
		return nil, err
	}
	if cfg.Network, err = t.alloc.network.attach(ctx, t.alloc, d); err != nil {
		return nil, err
	}
	lap.Done(timeline.TaskTurn)
	create := span.Child(timeline.TaskCreate)
	task, err := d.Start(timeline.With(ctx, create), cfg)
	create.End()
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	t.update(func(r *taskRecord) {
		r.Started = true
		t.handle = task
		r.State = withEvents(r.State, event(model.TaskStarted, "Task started by client"))
		r.State.State = model.TaskRunning
		r.State.StartedAt, r.State.FinishedAt = now, 0
	})
	return task, nil
}

// note adds what the driver says about its progress to the task's events.
func (t *taskRunner) note(text string) {
	_ = t.update(func(r *taskRecord) { // an error is logged there, and the next update writes it all again
		r.State = withEvents(r.State, event(model.TaskDriver, text, "driver_message", text))
	})
}

// driverName is the driver that the specification asks for. The caller holds alloc.mu.
func (t *taskRunner) driverName() string {
	if spec, _ := specOf(t.alloc.alloc, t.name); spec != nil {
		return spec.Driver
	}
	return ""
}

// next makes the configuration of a new incarnation and puts it on record, so that its id is never used again.
func (t *taskRunner) next() (driver.Driver, driver.TaskConfig, error) {
	if err := t.update(func(r *taskRecord) {
		if r.Incarnation == 0 {
			r.State = withEvents(r.State, event(model.TaskSetup, "Building Task Directory", "message", "Building Task Directory"))
		}
		r.Incarnation++
		r.Started, r.Driver = false, t.driverName()
	}); err != nil {
		return nil, driver.TaskConfig{}, err
	}
	d, cfg, err := t.config()
	if err != nil {
		return nil, cfg, err
	}
	if err := d.Validate(cfg.Task); err != nil {
		return nil, cfg, fault.Wrap(fault.Invalid, err, "%s", fault.Public(err))
	}
	return d, cfg, nil
}

// config is the configuration of the current incarnation, by the newest specification.
func (t *taskRunner) config() (driver.Driver, driver.TaskConfig, error) {
	r := t.alloc
	r.mu.Lock()
	a, id := r.alloc, t.id()
	r.mu.Unlock()
	cfg := driver.TaskConfig{ID: id, AllocID: a.ID, JobID: a.JobID,
		Namespace: a.Namespace, Group: a.TaskGroup, DiskMB: a.Resources.DiskMB,
		StateDir: r.agent.db.taskDir(a.ID, t.name), Emit: t.note}
	if held := a.Resources.Tasks[t.name]; held != nil {
		cfg.Resources = *held
	}
	spec, group := specOf(a, t.name)
	if spec == nil {
		return nil, cfg, fault.New(fault.Invalid, "job %q has no task %q in group %q", a.JobID, t.name, a.TaskGroup)
	}
	n := r.agent.node()
	nomad := placementEnv(n, a, group, spec)
	cfg.Env = taskEnv(n, a, group, spec)
	filled := *spec
	filled.Config, _ = expandConfig(spec.Config, n, cfg.Env).(map[string]any)
	filled.User = expand(spec.User, n, cfg.Env)
	cfg.Task, cfg.Networks = &filled, group.Networks
	r.mu.Lock()
	t.nomad = nomad
	r.mu.Unlock()
	d := r.agent.drivers[spec.Driver]
	if d == nil {
		return nil, cfg, fault.New(fault.Invalid, "this node has no driver %q", spec.Driver)
	}
	if err := t.furnish(d, &cfg, n, a, group, spec); err != nil {
		return nil, cfg, err
	}
	return d, cfg, nil
}

// supervise waits for what ends the incarnation.
func (t *taskRunner) supervise(life, ctx context.Context, task driver.Task) fate {
	select {
	case <-task.Done():
		return t.exited(ctx, task.Exit())
	case answer := <-t.restart:
		const reason = "User requested task to restart"
		t.update(func(r *taskRecord) {
			r.State = withEvents(r.State, event(eventRestartSignaled, reason, "restart_reason", reason))
		})
		exit := t.stop(life, task, &stopReason{text: reason})
		t.toRestart(decision{reason: reason}, terminated(exit))
		t.cleanup(ctx)
		close(answer)
		return again
	case <-ctx.Done():
		reason, ok := errors.AsType[*stopReason](context.Cause(ctx))
		if !ok {
			return letGo
		}
		t.delay(life, task, reason)
		t.announce(reason)
		exit := t.stop(life, task, reason)
		t.die(reason.fails, terminated(exit), event(model.TaskKilled, "Task successfully killed"))
		t.cleanup(ctx)
		return dead
	}
}

// delay lets a task go on for a while that was asked to stop.
func (t *taskRunner) delay(life context.Context, task driver.Task, reason *stopReason) {
	t.alloc.mu.Lock()
	spec, _ := specOf(t.alloc.alloc, t.name)
	skip := reason.final || t.alloc.alloc.Transition != nil && t.alloc.alloc.Transition.NoShutdownDelay
	t.alloc.mu.Unlock()
	if skip || spec == nil || spec.ShutdownDelay <= 0 {
		return
	}
	t.announceDelay(spec.ShutdownDelay)
	timer := time.NewTimer(spec.ShutdownDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-task.Done():
	case <-t.alloc.purge.done():
	case <-life.Done():
	}
}

func (t *taskRunner) announceDelay(d time.Duration) {
	_ = t.update(func(r *taskRecord) { // an error is logged there
		r.State = withEvents(r.State, event(eventDelay, fmt.Sprintf("Waiting for shutdown_delay of %v before killing the task.", d)))
	})
}

func (t *taskRunner) restartPolicy() model.RestartPolicy {
	t.alloc.mu.Lock()
	defer t.alloc.mu.Unlock()
	spec, group := specOf(t.alloc.alloc, t.name)
	switch {
	case spec == nil:
		return model.RestartPolicy{}
	case spec.Restart != nil:
		return *spec.Restart
	}
	return group.Restart
}

// exited handles a main process that ended by itself.
func (t *taskRunner) exited(ctx context.Context, exit driver.Exit) fate {
	good := exit.Err == nil && exit.ExitCode == 0 && exit.Signal == 0 && !exit.OOMKilled
	if good && t.phase.endsByItself(t.alloc.jobType()) {
		t.die(false, terminated(exit))
		t.cleanup(ctx)
		return dead
	}
	return t.restartOrDie(ctx, terminated(exit))
}

// restartOrDie asks the restart policy, cleans up and waits for the time of the restart.
func (t *taskRunner) restartOrDie(ctx context.Context, e *model.TaskEvent) fate {
	policy := t.restartPolicy()
	t.alloc.mu.Lock()
	d := t.record.Restarts.next(policy, time.Now())
	t.alloc.mu.Unlock()
	if !d.restart {
		t.die(true, e, notRestarting(d.reason))
		t.cleanup(ctx)
		return dead
	}
	t.toRestart(d, e)
	t.cleanup(ctx)
	timer := time.NewTimer(d.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return again
	case <-ctx.Done():
		return t.endUnstarted(ctx)
	}
}

// toRestart makes the task pending again.
func (t *taskRunner) toRestart(d decision, events ...*model.TaskEvent) {
	now := time.Now().UnixNano()
	t.update(func(r *taskRecord) {
		t.handle = nil
		r.Started = false
		r.State = withEvents(r.State, append(events, restarting(d))...)
		r.State.State = model.TaskPending
		r.State.Restarts++
		r.State.LastRestart = now
	})
}

// endUnstarted ends a task of which nothing runs: it was killed, or let go, before it started.
func (t *taskRunner) endUnstarted(ctx context.Context) fate {
	reason, ok := errors.AsType[*stopReason](context.Cause(ctx))
	if !ok {
		return letGo
	}
	t.announce(reason)
	t.die(reason.fails, event(model.TaskKilled, "Task successfully killed"))
	t.cleanup(ctx)
	return dead
}

// announce says that the task is about to be killed, and why.
func (t *taskRunner) announce(reason *stopReason) {
	var events []*model.TaskEvent
	if reason.kind != "" {
		events = append(events, event(reason.kind, reason.text))
	}
	timeout, _ := t.killing(reason)
	t.update(func(r *taskRecord) {
		r.State = withEvents(r.State, append(events, killing(reason.text, timeout))...)
	})
}

// die makes the task dead. Nothing changes it afterwards.
func (t *taskRunner) die(failed bool, events ...*model.TaskEvent) {
	now := time.Now().UnixNano()
	t.update(func(r *taskRecord) {
		t.handle = nil
		r.Started = false
		r.State = withEvents(r.State, events...)
		r.State.State, r.State.Failed, r.State.FinishedAt = model.TaskDead, failed, now
	})
}

// stop ends the main process and everything with it. When life ends first, the driver stops waiting and kills. Where it cannot,
// cleanup has the last word.
func (t *taskRunner) stop(life context.Context, task driver.Task, reason *stopReason) driver.Exit {
	timeout, signal := t.killing(reason)
	bounded, cancel := context.WithTimeout(life, timeout+killGrace)
	defer cancel()
	log := t.alloc.log().WithField("task", t.name)
	log.WithField("reason", reason.text).Debug("stopping task")
	if err := task.Stop(bounded, signal, timeout); err != nil {
		log.WithError(err).Error("task could not be stopped")
		t.cleanup(life)
	}
	last := time.NewTimer(killGrace)
	defer last.Stop()
	select {
	case <-task.Done():
		return task.Exit()
	case <-last.C:
		return driver.Exit{ExitCode: -1, Err: errors.New("the task's end was not seen")}
	}
}

// killing is how the task wants to be stopped.
func (t *taskRunner) killing(reason *stopReason) (timeout time.Duration, signal int) {
	timeout = defaultKillTimeout
	t.alloc.mu.Lock()
	defer t.alloc.mu.Unlock()
	if spec, _ := specOf(t.alloc.alloc, t.name); spec != nil {
		if spec.KillTimeout > 0 {
			timeout = spec.KillTimeout
		}
		signal = signalNumber(spec.KillSignal)
	}
	if reason.within > 0 {
		timeout = min(timeout, reason.within)
	}
	return timeout, signal
}

// cleanup destroys what is left of the current incarnation. What resists is tried again when the allocation is destroyed, and by
// the sweep of the next start.
func (t *taskRunner) cleanup(ctx context.Context) {
	t.alloc.mu.Lock()
	d := t.alloc.agent.drivers[t.record.Driver]
	id := ""
	if d != nil {
		id = t.id()
	}
	t.alloc.mu.Unlock()
	defer t.closeLogs()
	if d == nil {
		return // nothing was ever started
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := d.Cleanup(bounded, id); err != nil {
		t.alloc.log().WithError(err).WithField("task", t.name).Error("what is left of a task could not be destroyed")
		t.alloc.leftOver(d, id)
		return // its devices may be in use
	}
	t.alloc.agent.releaseDevices(id)
}

// id is the id of the current incarnation. The caller holds alloc.mu.
func (t *taskRunner) id() string {
	return t.alloc.id + "." + t.name + "." + strconv.FormatUint(t.record.Incarnation, 10)
}

func (t *taskRunner) state() *model.TaskState {
	t.alloc.mu.Lock()
	defer t.alloc.mu.Unlock()
	return t.record.State
}

// update changes the task's record, keeps it and reports it.
//
// An error of keeping it was logged; only what must not happen without a record needs to look at it.
func (t *taskRunner) update(change func(*taskRecord)) error {
	t.alloc.mu.Lock()
	change(&t.record)
	t.alloc.written.tasks = false
	t.alloc.mu.Unlock()
	err := t.alloc.changedState()
	t.alloc.move()
	return err
}
