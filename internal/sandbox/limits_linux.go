//go:build linux && cgo

package sandbox

import (
	"runtime"
	"syscall"
	"time"
)

// bounds is what the node holds an execution to.
type bounds struct {
	time, cpu, grace time.Duration
	output           int64
	background       bool
}

func boundsOf(spec ExecSpec) bounds {
	return bounds{spec.TimeLimit, spec.CPULimit, spec.Grace, spec.OutputLimit, spec.Background}
}

func (b bounds) any() bool { return b.time > 0 || b.cpu > 0 || b.output > 0 }

// settled is the cause of an execution whose group may be another's.
var settled Verdict

// blame notes why the node wants the end of an execution. The first reason stays. false: it has ended, and its group is nobody's to kill for its sake.
func (e *Execution) blame(v Verdict) bool {
	e.cause.CompareAndSwap(nil, &v)
	return e.cause.Load() != &settled
}

// settle makes the end of an execution final, unless the node has wanted it; then the group may still be being killed.
func (e *Execution) settle() bool { return e.cause.CompareAndSwap(nil, &settled) }

// enforce waits for a limit to be passed and ends the execution then: QUIT to the main process, after the grace KILL to all.
func (e *Execution) enforce() {
	verdict := e.passed()
	if verdict == "" {
		return
	}
	if !e.blame(verdict) {
		return
	}
	if e.bounds.grace > 0 && e.Signal(int(syscall.SIGQUIT)) == nil {
		grace := time.NewTimer(e.bounds.grace)
		defer grace.Stop()
		select {
		case <-e.over:
			return
		case <-grace.C:
		}
	}
	if err := e.killGroup(); err != nil {
		e.sandbox.runtime.logFor(e.sandbox.id).WithField("exec_id", e.id).WithError(err).Error("an execution beyond its limit could not be killed")
	}
}

// passed returns the limit that was passed first, or nothing when the program ended before.
func (e *Execution) passed() Verdict {
	var late, look <-chan time.Time
	if e.bounds.time > 0 {
		timer := time.NewTimer(time.Until(e.started.Add(e.bounds.time)))
		defer timer.Stop()
		late = timer.C
	}
	var cpu *time.Timer
	if e.bounds.cpu > 0 {
		cpu = time.NewTimer(nextLook(e.bounds.cpu))
		defer cpu.Stop()
		look = cpu.C
	}
	for {
		select {
		case <-e.over:
			return ""
		case <-e.meter.full:
			return VerdictOutput
		case <-late:
			return VerdictTime
		case <-look:
			left := time.Duration(0) // where it cannot be read it is looked at again soon
			if used, err := e.group.cpuTime(); err == nil {
				if left = e.bounds.cpu - (used - e.before.cpu); left <= 0 {
					return VerdictCPU
				}
			}
			cpu.Reset(nextLook(left))
		}
	}
}

// nextLook is the earliest moment at which the CPU time that is left could be used up, all cores at work: a program that sleeps is hardly ever
// looked at.
func nextLook(left time.Duration) time.Duration {
	return max(left/time.Duration(runtime.NumCPU()), 10*time.Millisecond)
}

// judge fills in how the main process ended, and the one verdict. It takes the kernel's figures and the node's reasons, nothing else.
func (e *Execution) judge(status syscall.WaitStatus, r *Result) {
	r.ExitCode = status.ExitStatus()
	if status.Signaled() {
		r.Signal = int(status.Signal())
		r.ExitCode = 128 + r.Signal
	}
	var cause Verdict
	if c := e.cause.Load(); c != nil {
		cause = *c
	}
	_, cut := e.meter.read()
	killed := status.Signaled() && status.Signal() == syscall.SIGKILL
	switch {
	case cause != "" && cause != VerdictKilled:
		r.Verdict = cause
	case cut: // it ended by itself, but left more than it may write
		r.Verdict = VerdictOutput
	case e.bounds.cpu > 0 && r.CPUTime >= e.bounds.cpu: // between two looks
		r.Verdict = VerdictCPU
	case killed && cause == VerdictKilled:
		r.Verdict = VerdictKilled
	case killed && r.OOMKilled:
		r.Verdict = VerdictMemory
	case status.Signaled():
		r.Verdict = VerdictSignal
	default:
		r.Verdict = VerdictExit
	}
}

// cpuTime is what the group has used so far.
func (g group) cpuTime() (time.Duration, error) {
	if path, ok := g.file("cpuacct", "cpuacct.usage", ""); ok {
		ns, err := number(path)
		return time.Duration(ns), err
	} else if path, ok := g.file("cpu", "", "cpu.stat"); ok {
		us, err := keyed(path, "usage_usec")
		return time.Duration(us) * time.Microsecond, err
	}
	return 0, nil
}
