package node

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// latch is a condition that becomes true once, for a reason. The zero value is one that is not true yet.
type latch struct {
	mu     sync.Mutex
	is     bool
	waited chan struct{} // closed when it becomes true; nil = nobody waits
	reason *stopReason   // valid once it is true
}

func (l *latch) set(reason *stopReason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.is {
		return
	}
	l.is, l.reason = true, reason
	if l.waited != nil {
		close(l.waited)
		l.waited = nil
	}
}

func (l *latch) isSet() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.is
}

// done is closed once it is true.
func (l *latch) done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.is {
		return closed
	}
	if l.waited == nil {
		l.waited = make(chan struct{})
	}
	return l.waited
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// allocRunner lives through one allocation: it runs the tasks, stops them when that is wanted, and waits to be purged.
type allocRunner struct {
	id      string
	agent   *Agent
	tasks   map[string]*taskRunner
	stop    latch         // the tasks shall end
	purge   latch         // the allocation shall vanish; sets stop too
	renewed chan struct{} // level trigger: alloc was replaced
	moved   chan struct{} // level trigger: a task's state or a check's result has changed
	quiet   chan struct{} // closed when no task runs or ever will
	saving  sync.Mutex    // held over writing the state, so that an older one never overwrites a newer
	network networkOf
	share   share
	offers  offers

	mu          sync.Mutex
	alloc       *model.Allocation // as the servers last sent it
	description string            // overrides the derived one
	reported    model.AllocUpdate
	debris      map[string]driver.Driver // by task id: what could not be destroyed; nil = nothing ever
	collected   bool                     // its logs and files were removed; nothing else is written after the end
	retired     bool                     // it has ended, and nothing is written any more: what a task would still tell is told to nobody
	written     struct {                 // is what is on disk the newest there is
		alloc, tasks bool
	}
	before  []before           // must have ended before a task starts; nil = nobody
	tracker *healthTracker     // nil = nobody asks for the allocation's health
	health  *model.AllocHealth // nil = not decided

	networkStatus *model.NetworkStatus
}

// newAllocRunner makes the runner of an allocation: a new one, or one that an earlier process of the agent left.
func newAllocRunner(a *Agent, alloc *model.Allocation, records map[string]*taskRecord) *allocRunner {
	r := &allocRunner{id: alloc.ID, agent: a,
		tasks: map[string]*taskRunner{}, renewed: make(chan struct{}, 1), moved: make(chan struct{}, 1),
		quiet: make(chan struct{}), alloc: alloc}
	r.written.tasks = true
	var tasks []*model.Task
	if g := alloc.Job.Group(alloc.TaskGroup); g != nil {
		tasks = g.Tasks
	}
	for _, spec := range tasks {
		var record taskRecord
		if known := records[spec.Name]; known != nil {
			record = *known
		}
		if record.State == nil {
			record.State = firstState(alloc)
			r.written.tasks = false
		}
		r.tasks[spec.Name] = &taskRunner{name: spec.Name, phase: phaseOf(spec), alloc: r, record: record, restart: make(chan chan struct{})}
		if !record.Started {
			r.tasks[spec.Name].found.set(nil)
		}
	}
	r.tracker = newHealthTracker(alloc)
	if alloc.DesiredStatus != model.DesiredRun {
		r.stop.set(desiredStop(alloc))
	}
	return r
}

// log is made when something is to be said, as nothing is of most allocations.
func (r *allocRunner) log() logging.Logger {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.agent.log.WithFields(logging.Fields{"alloc_id": r.id, "job_id": r.alloc.JobID})
}

// firstState is the state of a task that has no record here. If the servers know that the allocation has run, its tasks are
// lost: starting them again would hand out as fresh what was used.
func firstState(a *model.Allocation) *model.TaskState {
	ran := a.ClientStatus == model.ClientRunning || a.ClientStatus == model.ClientUnknown
	for _, s := range a.TaskStates {
		ran = ran || s.StartedAt != 0
	}
	if !ran {
		return withEvents(&model.TaskState{State: model.TaskPending}, event(model.TaskReceived, "Task received by client"))
	}
	return withEvents(&model.TaskState{State: model.TaskDead, Failed: true, FinishedAt: time.Now().UnixNano()},
		failedRestoring("it has run and this node has no record of it"))
}

func desiredStop(a *model.Allocation) *stopReason {
	text := a.DesiredDescription
	if text == "" {
		text = "stop requested"
	}
	return &stopReason{text: text}
}

// specOf finds a task's specification and its group.
func specOf(a *model.Allocation, task string) (*model.Task, *model.TaskGroup) {
	g := a.Job.Group(a.TaskGroup)
	if g == nil {
		return nil, nil
	}
	return g.Task(task), g
}

// renew takes over what the servers now say about the allocation. Running tasks are not touched by a new specification.
func (r *allocRunner) renew(alloc *model.Allocation, full bool) {
	r.mu.Lock()
	r.alloc, r.written.alloc = alloc, false
	again := r.reported.ID != "" && stale(r.reported.ClientStatus, alloc, full)
	r.mu.Unlock()
	if again {
		r.report(true)
	}
	if alloc.DesiredStatus != model.DesiredRun {
		r.stop.set(desiredStop(alloc))
	}
	select {
	case r.renewed <- struct{}{}:
	default:
	}
}

// stale reports whether the servers missed or overruled a status while there was no stream, or count as unknown what they can hear of now.
func stale(reported string, alloc *model.Allocation, full bool) bool {
	return alloc.ClientStatus != reported && (full || alloc.ClientStatus == model.ClientUnknown)
}

// destroy makes the allocation vanish.
func (r *allocRunner) destroy() {
	r.purge.set(&stopReason{text: "the allocation was purged", final: true})
	r.stop.set(r.purge.reason)
	r.agent.reporter.forget(r.id)
}

// run returns when the allocation was retired or destroyed, or let go because ctx ended.
func (r *allocRunner) run(ctx context.Context) {
	r.save()
	if !r.recovering() { // those report once the driver has answered
		r.report(false)
	}
	if !r.runTasks(ctx) {
		return
	}
	clean := r.clear(ctx)
	close(r.quiet)
	for !r.purge.isSet() {
		if r.keep(); clean && r.agent.retire(r) {
			return
		}
		again := time.NewTimer(clearEvery)
		select {
		case <-r.purge.done():
		case <-r.renewed:
		case <-r.moved:
		case <-again.C:
			clean = clean || r.clear(ctx)
		case <-ctx.Done():
			again.Stop()
			return
		}
		again.Stop()
	}
	r.bury(ctx)
}

// clearEvery is how often it is tried to let go of an allocation that has ended.
const clearEvery = time.Minute

// clear takes back what the tasks had together, and reports whether nothing of it is left.
func (r *allocRunner) clear(ctx context.Context) bool {
	clean := true
	if err := r.network.detach(ctx, r); err != nil {
		clean = false
		r.log().WithError(err).Error("the network of an allocation could not be taken back, it will be tried again")
	}
	if err := r.share.close(r.agent.db.files(r.id)); err != nil {
		clean = false
		r.log().WithError(err).Error("the directory that an allocation's tasks shared could not be taken away, it will be tried again")
	}
	return clean
}

// keep writes what could not be written when it changed.
func (r *allocRunner) keep() {
	r.mu.Lock()
	written := r.written
	r.mu.Unlock()
	if !written.alloc {
		r.save()
	}
	if !written.tasks {
		_ = r.changedState() // an error is logged there
	}
}

// recovering reports whether an earlier process of the agent left a running task.
func (r *allocRunner) recovering() bool {
	for _, t := range r.tasks {
		if t.record.Started {
			return true
		}
	}
	return false
}

// runTasks returns true when all tasks are dead, false when they were let go.
func (r *allocRunner) runTasks(ctx context.Context) bool {
	var wg sync.WaitGroup
	defer wg.Wait()
	over := make(chan *taskRunner, len(r.tasks))
	alive := maps.Clone(r.tasks)
	for _, t := range r.tasks {
		tctx, kill := context.WithCancelCause(ctx)
		t.kill = kill
		if r.stop.isSet() && t.endsWith(r.stop.reason) { // never start what is to be stopped
			kill(r.stop.reason)
		}
		wg.Go(func() {
			defer kill(nil)
			if t.run(ctx, tctx) == dead {
				over <- t
			}
		})
	}
	defer r.offers.end()
	stop, purge := r.stop.done(), r.purge.done()
	var deadline, delay, verdict alarm // of the group, of the stop, of the health
	defer deadline.stop()
	defer delay.stop()
	defer verdict.stop()
	if left, bounded := r.timeLeft(); bounded {
		deadline.set(left)
	}
	r.advance(ctx, alive, &verdict)
	for len(alive) > 0 {
		select {
		case t := <-over:
			delete(alive, t.name)
			r.sibling(t, alive)
			r.advance(ctx, alive, &verdict)
		case <-r.moved:
			r.advance(ctx, alive, &verdict)
		case <-verdict.rings():
			r.advance(ctx, alive, &verdict)
		case <-stop:
			stop = nil
			r.advance(ctx, alive, &verdict) // nobody shall find its services any more
			if d := r.shutdownDelay(alive); d > 0 {
				delay.set(d)
				continue
			}
			r.stopTasks(alive)
		case <-delay.rings():
			r.stopTasks(alive)
		case <-purge:
			purge = nil
			for _, t := range alive {
				t.kill(r.purge.reason)
			}
		case <-deadline.rings():
			r.describe("max_run_duration exceeded")
			r.stop.set(&stopReason{text: "the group's max_run_duration is over"})
		case <-r.renewed:
			r.save()
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// advance does what follows from the tasks' states: who may start, who must end, what is offered, and whether all is well.
func (r *allocRunner) advance(ctx context.Context, alive map[string]*taskRunner, verdict *alarm) {
	r.mu.Lock()
	parts := make(map[string]part, len(r.tasks))
	for name, t := range r.tasks {
		parts[name] = part{t.phase, t.record.State}
	}
	r.mu.Unlock()
	o := decide(parts)
	ever := false // some task has run
	for _, p := range parts {
		ever = ever || p.state.StartedAt != 0
	}
	for _, name := range o.start {
		t := r.tasks[name]
		if t.phase == phasePoststop && !ever { // there is nothing to clean up after
			t.kill(&stopReason{text: "no other task has run"})
			continue
		}
		t.gate.set(nil)
	}
	for _, name := range o.release {
		if t := alive[name]; t != nil {
			t.kill(&stopReason{kind: eventMainDead, text: "Main tasks in the group died"})
		}
	}
	r.offers.update(ctx, r, parts, r.stop.isSet())
	r.judge(parts, verdict)
}

// judge finds out whether the allocation is well, and when to look again.
func (r *allocRunner) judge(parts map[string]part, again *alarm) {
	if r.tracker == nil || r.stop.isSet() {
		return
	}
	healthy, wake := r.tracker.judge(time.Now(), parts, r.offers.passing())
	if healthy == nil {
		if !wake.IsZero() {
			again.set(max(time.Until(wake), 0))
		}
		return
	}
	again.stop()
	r.tracker = nil
	r.mu.Lock()
	r.health = &model.AllocHealth{Healthy: healthy, Timestamp: time.Now().UnixNano()}
	if was := r.alloc.DeploymentStatus; was != nil {
		r.health.Canary = was.Canary
	}
	r.mu.Unlock()
	r.report(true)
}

// shutdownDelay is how long the tasks that were asked to stop go on, for those who have found them before.
func (r *allocRunner) shutdownDelay(alive map[string]*taskRunner) time.Duration {
	if r.stop.reason.final {
		return 0
	}
	r.mu.Lock()
	g := r.alloc.Job.Group(r.alloc.TaskGroup)
	skip := r.alloc.Transition != nil && r.alloc.Transition.NoShutdownDelay
	r.mu.Unlock()
	if g == nil || g.ShutdownDelay <= 0 || skip {
		return 0
	}
	for _, t := range alive {
		t.announceDelay(g.ShutdownDelay)
	}
	return g.ShutdownDelay
}

// sibling ends the other tasks when one failed, or when the leader is done. What cleans up after them is left.
func (r *allocRunner) sibling(ended *taskRunner, alive map[string]*taskRunner) {
	var reason *stopReason
	switch {
	case ended.state().Failed:
		reason = &stopReason{kind: eventSiblingFailed, text: "Task's sibling " + ended.name + " failed"}
	case r.leads(ended.name):
		reason = &stopReason{kind: eventLeaderDead, text: "Leader Task in Group dead"}
	default:
		return
	}
	for _, t := range alive {
		if t.endsWith(reason) {
			t.kill(reason)
		}
	}
}

// stopTasks ends the leader, whose end takes the others along; or the main tasks, whose end releases what runs beside them; or all that are left.
func (r *allocRunner) stopTasks(alive map[string]*taskRunner) {
	reason, mains := r.stop.reason, false
	for _, t := range alive {
		if r.leads(t.name) {
			t.kill(reason)
			return
		}
		mains = mains || t.phase == phaseMain
	}
	for _, t := range alive {
		if t.endsWith(reason) && (!mains || !t.phase.sidecar() || reason.final) {
			t.kill(reason)
		}
	}
}

func (r *allocRunner) leads(task string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	spec, _ := specOf(r.alloc, task)
	return spec != nil && spec.Leader
}

// timeLeft is for how long the group may still run, counted from the first start of a task. False means that there is no bound.
func (r *allocRunner) timeLeft() (left time.Duration, bounded bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.alloc.Job.Group(r.alloc.TaskGroup)
	if g == nil || g.MaxRunTime <= 0 {
		return 0, false
	}
	left = g.MaxRunTime
	for _, t := range r.tasks {
		if s := t.record.State.StartedAt; s != 0 {
			left = min(left, time.Until(time.Unix(0, s).Add(g.MaxRunTime)))
		}
	}
	return max(left, 0), true
}

func (r *allocRunner) describe(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.description = text
}

// bury destroys every trace of the allocation, and tries until it is done or ctx ends; then the next start does it.
func (r *allocRunner) bury(ctx context.Context) {
	var pause backoff
	for {
		r.mu.Lock()
		debris := maps.Clone(r.debris)
		r.mu.Unlock()
		var errs []error
		for id, d := range debris {
			bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			err := d.Cleanup(bounded, id)
			cancel()
			if err == nil {
				r.mu.Lock()
				delete(r.debris, id)
				r.mu.Unlock()
				r.agent.releaseDevices(id)
			}
			errs = append(errs, err)
		}
		errs = append(errs, r.network.detach(ctx, r), r.share.close(r.agent.db.files(r.id)))
		r.close()
		if err := errors.Join(errs...); err != nil {
			r.log().WithError(err).Error("allocation could not be destroyed, it will be tried again")
		} else if r.agent.vanish(r.id) {
			return
		}
		if !pause.wait(ctx) {
			return
		}
	}
}

// close ends what is written of the allocation.
func (r *allocRunner) close() {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retired = true
}

// move makes the allocation's goroutine look at the tasks again.
func (r *allocRunner) move() {
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

func (r *allocRunner) leftOver(d driver.Driver, taskID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.debris == nil {
		r.debris = map[string]driver.Driver{}
	}
	r.debris[taskID] = d
}

func (r *allocRunner) jobType() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.alloc.Job.Type
}

// save keeps the allocation as the servers last sent it.
func (r *allocRunner) save() {
	r.mu.Lock()
	alloc := r.alloc
	r.mu.Unlock()
	err := r.agent.db.saveAlloc(alloc)
	if err != nil {
		r.log().WithError(err).Error("allocation is not on disk and would be lost by a restart of the agent")
	}
	r.mu.Lock()
	r.written.alloc = err == nil && r.alloc == alloc
	r.mu.Unlock()
}

// changedState keeps the state of the tasks and reports it, in this order: what was reported is never forgotten.
func (r *allocRunner) changedState() error {
	if r.purge.isSet() {
		return nil // the record vanishes with the allocation, and nobody is left to be told
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	if r.retired {
		r.mu.Unlock()
		return nil
	}
	records := make(map[string]*taskRecord, len(r.tasks))
	for name, t := range r.tasks {
		record := t.record
		records[name] = &record
	}
	r.written.tasks = true // unless it fails, or something changes meanwhile
	r.mu.Unlock()
	err := r.agent.db.saveTasks(r.id, records)
	if err != nil {
		r.mu.Lock()
		r.written.tasks = false
		r.mu.Unlock()
		r.log().WithError(err).Error("task states are not on disk and would be lost by a restart of the agent")
	}
	r.report(false)
	return err
}

// report tells the servers the present state: at once where a state has changed or force asks for it, else soon.
func (r *allocRunner) report(force bool) {
	if r.purge.isSet() {
		return // nobody is left to be told
	}
	r.mu.Lock()
	u := model.AllocUpdate{ID: r.id, TaskStates: make(map[string]*model.TaskState, len(r.tasks)), ModifyTime: time.Now().UnixNano()}
	for name, t := range r.tasks {
		u.TaskStates[name] = t.record.State
	}
	u.ClientStatus, u.ClientDescription = clientStatus(u.TaskStates)
	if len(r.tasks) == 0 {
		u.ClientStatus, u.ClientDescription = model.ClientFailed, "The job has no such task group"
	}
	if r.description != "" {
		u.ClientDescription = r.description
	}
	u.NetworkStatus, u.Health = r.networkStatus, r.health
	same := r.reported.ID != "" && maps.Equal(u.TaskStates, r.reported.TaskStates) && !force // a state that was handed out is never changed
	urgent := force || statesDiffer(u, r.reported)
	r.reported = u
	r.mu.Unlock()
	if !same {
		r.agent.reporter.put(u, urgent)
	}
}

// statesDiffer reports whether a status changed, as opposed to events only. What is new and pending changes nothing: the
// servers placed it as pending.
func statesDiffer(a, b model.AllocUpdate) bool {
	if b.ID == "" {
		return a.ClientStatus != model.ClientPending
	}
	if a.ClientStatus != b.ClientStatus {
		return true
	}
	for name, s := range a.TaskStates {
		if old := b.TaskStates[name]; old == nil || old.State != s.State {
			return true
		}
	}
	return false
}
