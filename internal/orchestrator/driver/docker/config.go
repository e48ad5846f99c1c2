package docker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"

	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver/taskconfig"
)

// Name is what a job's task says in its driver field.
const Name = "docker"

const (
	defaultPullTimeout = 5 * time.Minute // as Nomad's
	defaultPIDs        = 512             // as the native sandbox's
)

// config is a task's configuration.
type config struct {
	image        string
	entrypoint   []string
	command      string
	args         []string
	workDir      string
	hostname     string
	networkMode  string
	runtime      string
	forcePull    bool
	pullTimeout  time.Duration
	auth         registry.AuthConfig
	memoryHardMB int64
	shmBytes     int64
	pids         int64
	cpuHardLimit bool
	readOnly     bool
	ulimits      []*container.Ulimit
	labels       map[string]string
	ports        []string
}

// table has the names and meanings of Nomad's Docker driver.
var table = taskconfig.Table[config]{
	Driver: Name,
	Keys: map[string]func(c *config, v any) error{
		"image":              func(c *config, v any) error { return taskconfig.Text(&c.image, v) },
		"entrypoint":         func(c *config, v any) error { return taskconfig.Texts(&c.entrypoint, v) },
		"command":            func(c *config, v any) error { return taskconfig.Text(&c.command, v) },
		"args":               func(c *config, v any) error { return taskconfig.Texts(&c.args, v) },
		"work_dir":           func(c *config, v any) error { return taskconfig.AbsolutePath(&c.workDir, v) },
		"hostname":           func(c *config, v any) error { return taskconfig.Text(&c.hostname, v) },
		"network_mode":       networkMode,
		"runtime":            func(c *config, v any) error { return taskconfig.Text(&c.runtime, v) },
		"force_pull":         func(c *config, v any) error { return taskconfig.Flag(&c.forcePull, v) },
		"image_pull_timeout": pullTimeout,
		"auth":               auth,
		"memory_hard_limit":  func(c *config, v any) error { return taskconfig.Positive(&c.memoryHardMB, v) },
		"shm_size":           func(c *config, v any) error { return taskconfig.Positive(&c.shmBytes, v) },
		"pids_limit":         func(c *config, v any) error { return taskconfig.Positive(&c.pids, v) },
		"cpu_hard_limit":     func(c *config, v any) error { return taskconfig.Flag(&c.cpuHardLimit, v) },
		"readonly_rootfs":    func(c *config, v any) error { return taskconfig.Flag(&c.readOnly, v) },
		"ulimit":             ulimits,
		"labels":             labels,
		"ports":              func(c *config, v any) error { return taskconfig.Texts(&c.ports, v) },
		"init":               func(*config, any) error { return nil }, // there always is one, see container.go
		"cap_drop":           func(*config, any) error { return nil }, // all are dropped
	},
	Refused: map[string]string{
		"privileged":   "a container of this node never has privileges",
		"cap_add":      "a container of this node never has capabilities",
		"security_opt": "the walls of a container are this node's to set",
		"volumes":      "nothing of the node is shown inside",
		"mount":        "nothing of the node is shown inside",
		"mounts":       "nothing of the node is shown inside",
		"devices":      "nothing of the node is shown inside",
		"pid_mode":     "a container never sees the node's processes",
		"ipc_mode":     "a container never shares the node's memory",
		"uts_mode":     "a container has a name of its own",
		"userns_mode":  "the engine's own configuration decides on user namespaces",
		"logging":      "the output of the command is not kept; that of executions goes to whoever started them",
	},
}

func parse(raw map[string]any) (*config, error) {
	c := &config{pullTimeout: defaultPullTimeout, pids: defaultPIDs, labels: map[string]string{}}
	if err := table.Parse(c, raw); err != nil {
		return nil, err
	}
	if c.image == "" {
		return nil, table.Wrong("image", "it is missing")
	}
	if c.image == image.Host {
		return nil, table.Wrong("image", "%q is this node's own system, which an engine cannot run: name an image of a registry, or run the task with the driver \"sandbox\"", c.image)
	}
	if _, err := reference.ParseAnyReference(c.image); err != nil {
		return nil, table.Wrong("image", "%q is no image: %w", c.image, err)
	}
	return c, nil
}

// networkMode takes none, the engine's own bridge, or a network that the operator has made on the engine.
func networkMode(c *config, v any) error {
	if err := taskconfig.Text(&c.networkMode, v); err != nil {
		return err
	}
	switch mode := c.networkMode; {
	case mode == "host":
		return errors.New(`"host" would share the node's own network: use "none", "bridge" or a network made with docker network create`)
	case strings.Contains(mode, ":"):
		return fmt.Errorf(`%q would share another container's network: use "none", "bridge" or a network made with docker network create`, mode)
	case mode == "default" || mode == "":
		c.networkMode = "bridge"
	}
	return nil
}

func pullTimeout(c *config, v any) error {
	var text string
	err := taskconfig.Text(&text, v)
	if err == nil {
		c.pullTimeout, err = time.ParseDuration(text)
	}
	if err == nil && c.pullTimeout <= 0 {
		err = fmt.Errorf("%s is not positive", text)
	}
	return err
}

func auth(c *config, v any) error {
	block, err := taskconfig.Block(v)
	if err != nil {
		return err
	}
	into := map[string]*string{
		"username": &c.auth.Username, "password": &c.auth.Password, "server_address": &c.auth.ServerAddress, "email": new(string),
	}
	for k, v := range block {
		if into[k] == nil {
			return fmt.Errorf("%q is not known; allowed are password, server_address, username", k)
		}
		if s, ok := v.(string); ok {
			*into[k] = s
		} else {
			return fmt.Errorf("%s is not a string", k) // its value is nobody's business
		}
	}
	return nil
}

// ulimits takes any that setrlimit(2) knows.
func ulimits(c *config, v any) error {
	block, err := taskconfig.Block(v)
	if err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(block)) {
		soft, hard, err := taskconfig.Limit(block[k])
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		u := &container.Ulimit{Name: k, Soft: soft, Hard: hard}
		if _, err := (*units.Ulimit)(u).GetRlimit(); err != nil {
			return err
		}
		c.ulimits = append(c.ulimits, u)
	}
	return nil
}

func labels(c *config, v any) error {
	block, err := taskconfig.Block(v)
	if err != nil {
		return err
	}
	for k, v := range block {
		if strings.HasPrefix(k, labelPrefix) {
			return fmt.Errorf("%q: names that start with %q are this node's own", k, labelPrefix)
		}
		c.labels[k] = fmt.Sprint(v)
	}
	return nil
}
