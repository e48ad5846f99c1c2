// Package raw is the driver raw_exec: plain processes of this machine, without any isolation. It is for trusted work and for
// tests, and refuses everything unless the node's configuration enables it.
//
// A task is a process in a process group of its own, and so is each execution; a group is killed whole. What leaves its
// group on purpose escapes: that is the limit of this driver. A process is recognised by its id and the time it started, so
// that a recycled id is never taken for it. The exit code of a task that an earlier process of the agent started is
// not to be had: its end is reported as unknown.
package raw

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// Name is what jobs call the driver.
const Name = "raw_exec"

// Config configures the driver.
type Config struct {
	Enabled bool
	Dir     string // records of running processes; the driver's own
}

var errDisabled = errors.New("driver raw_exec is disabled on this node")

var configKeys = []string{"args", "command", "work_dir"}

// command is a task's configuration.
type command struct {
	argv []string
	dir  string
}

func parse(config map[string]any) (c command, err error) {
	var name string
	var args []string
	for k, v := range config {
		ok := true
		switch k {
		case "command":
			name, ok = v.(string)
		case "work_dir":
			c.dir, ok = v.(string)
		case "args":
			args, ok = texts(v)
		default:
			return c, fault.New(fault.Invalid, "driver raw_exec: unknown config key %q; allowed are %s", k, strings.Join(configKeys, ", "))
		}
		if !ok {
			return c, fault.New(fault.Invalid, "driver raw_exec: config key %q has a value of the wrong type", k)
		}
	}
	if name == "" {
		return c, fault.New(fault.Invalid, "driver raw_exec: config key %q is missing", "command")
	}
	c.argv = append([]string{name}, args...)
	return c, nil
}

func texts(v any) ([]string, bool) {
	switch v := v.(type) {
	case []string:
		return slices.Clone(v), true
	case []any:
		all := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, false
			}
			all[i] = s
		}
		return all, true
	}
	return nil, false
}

// Validate checks a task's configuration.
func (d *Driver) Validate(t *model.Task) error {
	if !d.cfg.Enabled {
		return fault.Wrap(fault.Unsupported, errDisabled, "%v", errDisabled)
	}
	_, err := parse(t.Config)
	return err
}

// Name is what a job's task says in its driver field.
func (d *Driver) Name() string { return Name }

func disabled() model.DriverInfo {
	return model.DriverInfo{HealthDescription: fmt.Sprint(errDisabled)}
}
