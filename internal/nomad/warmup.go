package nomad

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
	"rockpool/internal/runner/execution"
)

// metaWarmUp is the key of the main task's meta that our own nodes read; see docs/native-api.md. A Nomad cluster passes it by.
const metaWarmUp = "rockpool_warmup"

// warmUp is the value: the interpreter, and what the executions are like that it is for.
type warmUp struct {
	Command []string
	Imports []string `json:",omitempty"`
	Env     []string
	User    string
	TTY     bool
	Split   bool
}

// warm tells nodes of an environment's warm-up. It fits what the gateway's clients execute when they say nothing else.
func (c *Client) warm(task *api.Task, w environment.WarmUp) error {
	if !w.Wanted() {
		return nil
	}
	env := execution.Request{}.Environ()
	value := warmUp{Command: w.Command, Imports: w.Imports, User: userOf(false), TTY: true, Split: c.opts.SplitStderr}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		value.Env = append(value.Env, name+"="+env[name])
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if task.Meta == nil {
		task.Meta = map[string]string{}
	}
	task.Meta[metaWarmUp] = string(text)
	return nil
}

// warmUpOf reads it back. What is unreadable is none.
func warmUpOf(task *api.Task) environment.WarmUp {
	var w warmUp
	if err := json.Unmarshal([]byte(task.Meta[metaWarmUp]), &w); err != nil {
		return environment.WarmUp{}
	}
	return environment.WarmUp{Command: w.Command, Imports: w.Imports}
}
