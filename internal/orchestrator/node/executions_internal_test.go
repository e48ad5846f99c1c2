package node

import (
	"testing"
	"time"

	"rockpool/internal/orchestrator/driver"
)

// endedExecution is an execution whose end was seen by nobody but who asks.
type endedExecution struct {
	driver.Execution
	done   chan struct{}
	result driver.ExecResult
	err    error
}

func (e endedExecution) Done() <-chan struct{}              { return e.done }
func (e endedExecution) Result() (driver.ExecResult, error) { return e.result, e.err }

// Whoever has seen the end of an execution may ask for its outcome before the agent has noted it.
func TestAnEndIsKnownBeforeItIsNoted(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		name string
		err  error
		want string
	}{{"known", nil, ExecExited}, {"not known", driver.ErrTaskGone, ExecLost}} {
		var x executions
		k := execKey{"a", "t", c.name}
		if err := x.reserve(k, now); err != nil {
			t.Fatal(err)
		}
		e := endedExecution{done: make(chan struct{}), result: driver.ExecResult{ExitCode: 3, WallTime: time.Second}, err: c.err}
		x.running(k, e)
		if r, err := x.get(k, now); err != nil || r.state != ExecRunning {
			t.Errorf("%s: while it runs: %+v, %v", c.name, r, err)
		}
		close(e.done)
		r, err := x.get(k, now)
		if err != nil || r.state != c.want || (c.err == nil) != (r.result == e.result) {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
		x.end(k, e.result, c.err, now)
		if noted, err := x.get(k, now); err != nil || noted.state != r.state || noted.result != r.result {
			t.Errorf("%s: noted as %+v, %v", c.name, noted, err)
		}
	}
}
