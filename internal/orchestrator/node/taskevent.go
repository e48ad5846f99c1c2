package node

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

// maxEvents is how many events of a task are kept.
const maxEvents = 10

// Types of events beyond those that the model names; they are Nomad's too.
const (
	eventRestartSignaled = "Restart Signaled"
	eventSiblingFailed   = "Sibling Task Failed"
	eventLeaderDead      = "Leader Task Dead"
	eventFailedRestoring = "Failed Restoring Task"
	eventMainDead        = "Main Tasks Dead"
	eventDelay           = "Waiting for shutdown delay"
)

// event makes a task event. Pairs are keys and values of its details.
func event(kind, display string, pairs ...string) *model.TaskEvent {
	return &model.TaskEvent{Type: kind, Time: time.Now().UnixNano(), DisplayMessage: display, Details: packed.Details(pairs...)}
}

// terminated tells how a task's process ended. An outcome that is not known is never exit code 0.
func terminated(exit driver.Exit) *model.TaskEvent {
	if exit.Err != nil && exit.ExitCode == 0 {
		exit.ExitCode = -1
	}
	display := fmt.Sprintf("Exit Code: %d", exit.ExitCode)
	if exit.Signal != 0 {
		display += fmt.Sprintf(", Signal: %d", exit.Signal)
	}
	message := ""
	switch {
	case exit.Err != nil:
		message = exit.Err.Error()
	case exit.OOMKilled:
		message = "OOM Killed"
	}
	pairs := []string{"exit_code", strconv.Itoa(exit.ExitCode), "signal", strconv.Itoa(exit.Signal),
		"oom_killed", strconv.FormatBool(exit.OOMKilled)}
	if message != "" {
		display += fmt.Sprintf(", Exit Message: %q", message)
		pairs = append(pairs, "exit_message", message)
	}
	return event(model.TaskTerminated, display, pairs...)
}

func restarting(d decision) *model.TaskEvent {
	return event(model.TaskRestarting, fmt.Sprintf("Task restarting in %v", d.delay),
		"restart_reason", d.reason, "start_delay", strconv.FormatInt(int64(d.delay), 10))
}

func notRestarting(reason string) *model.TaskEvent {
	return event(model.TaskNotRestarting, reason, "restart_reason", reason, "fails_task", "true")
}

func killing(reason string, timeout time.Duration) *model.TaskEvent {
	display := fmt.Sprintf("Sent interrupt. Waiting %v before force killing", timeout)
	return event(model.TaskKilling, display, "kill_timeout", timeout.String(), "kill_reason", reason)
}

// setupError is a failure before the driver was asked.
type setupError struct{ cause error }

func (e *setupError) Error() string { return e.cause.Error() }

func (e *setupError) Unwrap() error { return e.cause }

func startFailure(err error) *model.TaskEvent {
	if s, ok := errors.AsType[*setupError](err); ok {
		return event(model.TaskSetupFailure, oneSentence(s), "setup_error", s.Error())
	}
	return driverFailure(err)
}

func driverFailure(err error) *model.TaskEvent {
	return event(model.TaskDriverFailure, oneSentence(err), "driver_error", err.Error())
}

// failedRestoring ends a task of which nobody knows what it did.
func failedRestoring(why string) *model.TaskEvent {
	return event(eventFailedRestoring, "Failed to restore task: "+why, "message", why)
}

func oneSentence(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// withEvents returns a copy of s with events appended to its ring. States are never changed once they were handed out.
func withEvents(s *model.TaskState, events ...*model.TaskEvent) *model.TaskState {
	c := *s
	c.Events = append(append(make([]*model.TaskEvent, 0, len(s.Events)+len(events)), s.Events...), events...)
	if extra := len(c.Events) - maxEvents; extra > 0 {
		c.Events = c.Events[extra:]
	}
	return &c
}
