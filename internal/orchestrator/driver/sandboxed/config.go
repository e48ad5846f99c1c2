package sandboxed

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"rockpool/internal/fault"
	"rockpool/internal/image"
)

// config is a task's configuration.
type config struct {
	image         string
	argv          []string // empty = only wait
	workDir       string
	memoryHardMB  int64
	pids          int64
	openFiles     int64
	fileSizeBytes int64
	cpuHardLimit  bool
	forcePull     bool
	credentials   *image.Credentials
}

// keys are what a configuration may hold. Those that set nothing are accepted because nothing follows from them here.
var keys = map[string]func(c *config, v any) error{
	"image":   func(c *config, v any) error { return text(&c.image, v) },
	"command": func(c *config, v any) error { return command(c, v) },
	"args":    func(c *config, v any) error { return arguments(c, v) },
	"work_dir": func(c *config, v any) error {
		if err := text(&c.workDir, v); err != nil {
			return err
		}
		if !path.IsAbs(c.workDir) {
			return errors.New("an absolute path is wanted")
		}
		return nil
	},
	"network_mode": func(_ *config, v any) error {
		if v != "none" {
			return fmt.Errorf("%q is not offered, only \"none\": sandboxes have no network", v)
		}
		return nil
	},
	"memory_hard_limit": func(c *config, v any) error { return positive(&c.memoryHardMB, v) },
	"pids_limit":        func(c *config, v any) error { return positive(&c.pids, v) },
	"cpu_hard_limit":    func(c *config, v any) error { return flag(&c.cpuHardLimit, v) },
	"ulimit":            ulimits,
	"force_pull":        func(c *config, v any) error { return flag(&c.forcePull, v) },
	"auth":              credentials,
	"labels":            func(*config, any) error { return nil },
}

// refused are keys that the Docker driver has and that would change what a job can rely on.
var refused = map[string]string{
	"entrypoint": "the image's entry point is never run; put the whole command into command and args",
	"runtime":    "the native sandbox is the only one; a node with a Docker Engine offers others",
	"privileged": "a sandbox never has privileges",
	"volumes":    "nothing of the node is shown inside",
	"mount":      "nothing of the node is shown inside",
	"mounts":     "nothing of the node is shown inside",
	"cap_add":    "a sandbox never has capabilities",
}

func parse(name string, raw map[string]any) (*config, error) {
	c := &config{}
	for _, k := range slices.Sorted(maps.Keys(raw)) { // args before command: command prepends
		set, known := keys[k]
		var err error
		switch why, no := refused[k]; {
		case no:
			err = errors.New(why)
		case !known:
			err = fmt.Errorf("not known; allowed are %s", strings.Join(slices.Sorted(maps.Keys(keys)), ", "))
		default:
			err = set(c, raw[k])
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "driver %s: config key %q: %v", name, k, err)
		}
	}
	return c, c.complete(name, raw)
}

// complete checks what one key alone cannot, and fills in what is not said.
func (c *config) complete(name string, raw map[string]any) error {
	_, hasCommand := raw["command"]
	switch {
	case !hasCommand && name != Name:
		return fault.New(fault.Invalid, "driver %s: config key %q is missing: the command of an image itself is not run", name, "command")
	case !hasCommand && len(c.argv) > 0:
		return fault.New(fault.Invalid, "driver %s: config key %q needs a %q", name, "args", "command")
	case c.image == "" && name == NameDocker:
		return fault.New(fault.Invalid, "driver %s: config key %q is missing", name, "image")
	case c.image == "":
		c.image = image.Host
	}
	if _, err := image.Parse(c.image); err != nil {
		return fault.Wrap(fault.Invalid, err, "driver %s: config key %q: %s", name, "image", fault.Public(err))
	}
	if onlyWaits(c.argv) {
		c.argv = nil
	}
	return nil
}

// onlyWaits reports whether a command does nothing but keep a container alive.
func onlyWaits(argv []string) bool {
	if len(argv) == 0 {
		return true
	}
	whole := append([]string{path.Base(argv[0])}, argv[1:]...)
	return slices.Equal(whole, []string{"sleep", "infinity"}) || slices.Equal(whole, []string{"sleep", "inf"}) ||
		slices.Equal(whole, []string{"tail", "-f", "/dev/null"})
}

func command(c *config, v any) error {
	var s string
	if err := text(&s, v); err != nil {
		return err
	}
	if s == "" {
		return errors.New("it is empty")
	}
	c.argv = append([]string{s}, c.argv...)
	return nil
}

func arguments(c *config, v any) error {
	switch v := v.(type) {
	case []string:
		c.argv = append(c.argv, v...)
		return nil
	case []any:
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return fmt.Errorf("%v is not a string", x)
			}
			c.argv = append(c.argv, s)
		}
		return nil
	}
	return errors.New("a list of strings is wanted")
}

func ulimits(c *config, v any) error {
	values, err := block(v)
	if err != nil {
		return err
	}
	for k, v := range values {
		var into *int64
		switch k {
		case "nofile":
			into = &c.openFiles
		case "fsize":
			into = &c.fileSizeBytes
		default:
			return fmt.Errorf("%q is not offered; allowed are fsize, nofile", k)
		}
		if s, ok := v.(string); ok { // soft:hard; the sandbox knows one limit, and the hard one is the promise
			if _, hard, found := strings.Cut(s, ":"); found {
				v = hard
			}
		}
		if err := positive(into, v); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// block is what a block arrives as: a map, or a list with one in it.
func block(v any) (map[string]any, error) {
	if list, ok := v.([]any); ok && len(list) == 1 {
		v = list[0]
	}
	if list, ok := v.([]map[string]any); ok && len(list) == 1 {
		v = list[0]
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("a block is wanted")
	}
	return m, nil
}

// credentials takes what a registry asks for. No error repeats a value.
func credentials(c *config, v any) error {
	values, err := block(v)
	if err != nil {
		return err
	}
	c.credentials = &image.Credentials{}
	for k, v := range values {
		s, ok := v.(string)
		switch {
		case !ok:
			return fmt.Errorf("%s is not a string", k)
		case k == "username":
			c.credentials.Username = s
		case k == "password":
			c.credentials.Password = s
		case k != "email" && k != "server_address": // the image's reference says where they are shown
			return fmt.Errorf("%q is not known; allowed are username, password, email, server_address", k)
		}
	}
	if *c.credentials == (image.Credentials{}) {
		c.credentials = nil
	}
	return nil
}

func text(into *string, v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("%v is not a string", v)
	}
	*into = s
	return nil
}

func flag(into *bool, v any) error {
	switch v := v.(type) {
	case bool:
		*into = v
		return nil
	case string:
		b, err := strconv.ParseBool(v)
		*into = b
		return err
	}
	return fmt.Errorf("%v is neither true nor false", v)
}

func positive(into *int64, v any) error {
	switch v := v.(type) {
	case int:
		*into = int64(v)
	case int64:
		*into = v
	case float64:
		*into = int64(v)
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", v)
		}
		*into = n
	default:
		return fmt.Errorf("%v is not a number", v)
	}
	if *into <= 0 {
		return fmt.Errorf("%d is not positive", *into)
	}
	return nil
}
