package sandboxed

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"rockpool/internal/fault"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver/taskconfig"
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
	ioBytes, iops int64 // of each block device below the image, in a second
	cpuHardLimit  bool
	offline       bool   // no network although the group has one
	runtime       string // name of an OCI runtime; "" = the native sandbox
	forcePull     bool
	credentials   *image.Credentials
}

// keys are what a configuration may hold. Those that set nothing are accepted because nothing follows from them here.
var keys = map[string]func(c *config, v any) error{
	"image":    func(c *config, v any) error { return taskconfig.Text(&c.image, v) },
	"command":  func(c *config, v any) error { return command(c, v) },
	"args":     func(c *config, v any) error { return taskconfig.Texts(&c.argv, v) },
	"work_dir": func(c *config, v any) error { return taskconfig.AbsolutePath(&c.workDir, v) },
	"network_mode": func(c *config, v any) error {
		if v != "" && v != "none" {
			return fmt.Errorf("%q is not offered: say \"none\", or leave it empty and give the group a network block", v)
		}
		c.offline = v == "none"
		return nil
	},
	"memory_hard_limit": func(c *config, v any) error { return taskconfig.Positive(&c.memoryHardMB, v) },
	"pids_limit":        func(c *config, v any) error { return taskconfig.Positive(&c.pids, v) },
	"io_bytes_limit":    func(c *config, v any) error { return taskconfig.Positive(&c.ioBytes, v) },
	"io_ops_limit":      func(c *config, v any) error { return taskconfig.Positive(&c.iops, v) },
	"cpu_hard_limit":    func(c *config, v any) error { return taskconfig.Flag(&c.cpuHardLimit, v) },
	"ulimit":            ulimits,
	"force_pull":        func(c *config, v any) error { return taskconfig.Flag(&c.forcePull, v) },
	"auth":              credentials,
	"labels":            func(*config, any) error { return nil },
	"runtime":           func(c *config, v any) error { return taskconfig.Text(&c.runtime, v) },
}

// refused are keys that the Docker driver has and that would change what a job can rely on.
var refused = map[string]string{
	"entrypoint": "the image's entry point is never run; put the whole command into command and args",
	"privileged": "a sandbox never has privileges",
	"volumes":    "nothing of the node is shown inside",
	"mount":      "nothing of the node is shown inside",
	"mounts":     "nothing of the node is shown inside",
	"cap_add":    "a sandbox never has capabilities",
}

func parse(name string, raw map[string]any) (*config, error) {
	c := &config{}
	// In alphabetical order args comes before command, which prepends.
	if err := (taskconfig.Table[config]{Driver: name, Keys: keys, Refused: refused}).Parse(c, raw); err != nil {
		return nil, err
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
	case c.runtime != "" && c.ioBytes+c.iops > 0:
		return fault.New(fault.Invalid, "driver %s: config keys io_bytes_limit and io_ops_limit hold in the native sandbox only: leave them or %q out", name, "runtime")
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
	if err := taskconfig.Text(&s, v); err != nil {
		return err
	}
	if s == "" {
		return errors.New("it is empty")
	}
	c.argv = append([]string{s}, c.argv...)
	return nil
}

// ulimits takes a block. The sandbox knows one limit, and of soft:hard the hard one is the promise.
func ulimits(c *config, v any) error {
	block, err := taskconfig.Block(v)
	if err != nil {
		return err
	}
	for k, v := range block {
		var into *int64
		switch k {
		case "nofile":
			into = &c.openFiles
		case "fsize":
			into = &c.fileSizeBytes
		default:
			return fmt.Errorf("%q is not offered; allowed are fsize, nofile", k)
		}
		if _, *into, err = taskconfig.Limit(v); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// credentials takes what a registry asks for. No error repeats a value.
func credentials(c *config, v any) error {
	values, err := taskconfig.Block(v)
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
