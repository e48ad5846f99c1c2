package mock

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"rockpool/internal/fault"
)

// script is a task's configuration.
type script struct {
	runFor        time.Duration // 0 = until it is stopped
	exitCode      int
	exitSignal    int
	oomKilled     bool
	failOnce      bool // exit_code holds for the first start only
	startError    string
	startErrors   int // how often; 0 = always
	startDelay    time.Duration
	recoverError  string
	ignoreSignals bool // only a kill ends it
	stdout        string
	stderr        string
}

var keys = []string{"exit_code", "exit_signal", "fail_once", "ignore_signals", "oom_killed", "recover_error", "run_for",
	"start_delay", "start_error", "start_errors", "stderr_string", "stdout_string"}

func parse(config map[string]any) (s script, err error) {
	for k, v := range config {
		switch k {
		case "run_for":
			s.runFor, err = duration(v)
		case "start_delay":
			s.startDelay, err = duration(v)
		case "exit_code":
			s.exitCode, err = number(v)
		case "exit_signal":
			s.exitSignal, err = number(v)
		case "start_errors":
			s.startErrors, err = number(v)
		case "start_error":
			s.startError, err = as[string](v)
		case "recover_error":
			s.recoverError, err = as[string](v)
		case "stdout_string":
			s.stdout, err = as[string](v)
		case "stderr_string":
			s.stderr, err = as[string](v)
		case "oom_killed":
			s.oomKilled, err = as[bool](v)
		case "fail_once":
			s.failOnce, err = as[bool](v)
		case "ignore_signals":
			s.ignoreSignals, err = as[bool](v)
		default:
			if !slices.Contains(keys, k) {
				err = fmt.Errorf("unknown key; allowed are %s", strings.Join(keys, ", "))
			}
		}
		if err != nil {
			return s, fault.New(fault.Invalid, "driver mock: config key %q: %v", k, err)
		}
	}
	return s, nil
}

func as[T any](v any) (T, error) {
	t, ok := v.(T)
	if !ok {
		return t, fmt.Errorf("%v is not a %T", v, t)
	}
	return t, nil
}

func number(v any) (int, error) {
	switch v := v.(type) {
	case int:
		return v, nil
	case float64:
		return int(v), nil
	}
	return 0, fmt.Errorf("%v is not a number", v)
}

func duration(v any) (time.Duration, error) {
	s, err := as[string](v)
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(s)
}
