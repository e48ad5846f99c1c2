package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

func (e *engine) offers(runtime string) bool {
	_, ok := e.Runtimes[runtime]
	return ok
}

func (e *engine) runtimes() string { return strings.Join(slices.Sorted(maps.Keys(e.Runtimes)), ", ") }

// askTimeout bounds a question that an engine answers at once.
const askTimeout = 5 * time.Second

// engine is what is known of the engine.
type engine struct {
	system.Info
	boundsDisk bool
}

// Fingerprint asks the engine what it is. While it is away the driver is not detected; the node asks again from time to time.
func (d *Driver) Fingerprint(ctx context.Context) model.DriverInfo {
	e, err := d.ask(ctx)
	if err != nil {
		return model.DriverInfo{HealthDescription: fault.Public(err)}
	}
	if err := d.sweepLate(ctx); err != nil {
		d.cfg.Log.WithError(err).Error("what earlier tasks left behind could not be destroyed")
	}
	info := model.DriverInfo{Detected: true, Healthy: true, HealthDescription: "Healthy", Attributes: map[string]string{
		"driver.docker.version":      e.ServerVersion,
		"driver.docker.os_type":      e.OSType,
		"driver.docker.runtimes":     strings.Join(slices.Sorted(maps.Keys(e.Runtimes)), ","),
		"runtimes":                   strings.Join(slices.Sorted(maps.Keys(e.Runtimes)), ","), // a job that asks for another one waits
		"driver.docker.cgroup":       "v" + e.CgroupVersion,
		"driver.docker.storage":      e.Driver,
		"driver.docker.disk_bounded": fmt.Sprint(e.boundsDisk),
	}}
	var missing []string
	for _, f := range e.fences() {
		info.Attributes["driver.docker.fence."+strings.TrimPrefix(f.Name, "docker.")] = fmt.Sprint(f.InForce)
		if !f.InForce {
			missing = append(missing, strings.TrimPrefix(f.Name, "docker."))
		}
	}
	if len(missing) > 0 {
		info.HealthDescription = "Healthy; not in force with this engine: " + strings.Join(missing, ", ")
	}
	if e.OSType != "linux" {
		info.Healthy, info.HealthDescription = false, fmt.Sprintf("the engine runs %s containers, only those of Linux are served", e.OSType)
	}
	return info
}

// ask asks the engine what it is, and remembers the answer.
func (d *Driver) ask(ctx context.Context) (*engine, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := d.api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, d.explain(err, "ask the engine what it is")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.engine = &engine{r.Info, mayBoundDisk(r.Info) && !d.diskRefused}
	return d.engine, nil
}

// known is what was last said, or is asked now.
func (d *Driver) known(ctx context.Context) (*engine, error) {
	d.mu.Lock()
	e := d.engine
	d.mu.Unlock()
	if e != nil {
		return e, nil
	}
	return d.ask(ctx)
}

// mayBoundDisk says whether the storage driver knows quotas. That of overlay2 on xfs also depends on a mount option, which the first
// container shows.
func mayBoundDisk(i system.Info) bool {
	switch i.Driver {
	case "btrfs", "zfs":
		return true
	case "overlay2", "overlayfs":
		return slices.Contains(i.DriverStatus, [2]string{"Backing Filesystem", "xfs"})
	}
	return false
}

// explain gives an error of the engine's API the meaning it has here.
func (d *Driver) explain(err error, what string) error {
	switch {
	case err == nil:
		return nil
	case client.IsErrConnectionFailed(err):
		return fault.Wrap(fault.Unavailable, fmt.Errorf("%s: %w", what, err),
			"the Docker Engine at %s does not answer: start it, or set orchestrator.dockerengine to where it is", d.cfg.Endpoint)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(fault.Unavailable, fmt.Errorf("%s: %w", what, err), "the Docker Engine at %s did not answer in time: %s", d.cfg.Endpoint, what)
	case strings.Contains(err.Error(), `device driver "cdi"`): // as an engine says that has the feature turned off
		return fault.Wrap(fault.Unsupported, fmt.Errorf("%s: %w", what, err), "the Docker Engine at %s gives no devices: use version 28.3 or newer, or set features.cdi in its daemon.json", d.cfg.Endpoint)
	case strings.Contains(err.Error(), "CDI device injection failed"), strings.Contains(err.Error(), "unresolvable CDI devices"):
		return fault.Wrap(fault.Unsupported, fmt.Errorf("%s: %w", what, err), "the Docker Engine at %s does not know the devices of this task: it needs their specification in /etc/cdi or /var/run/cdi", d.cfg.Endpoint)
	case cerrdefs.IsPermissionDenied(err):
		return fault.Wrap(fault.Forbidden, fmt.Errorf("%s: %w", what, err), "the Docker Engine at %s refused: %s", d.cfg.Endpoint, what)
	}
	return fmt.Errorf("%s: %w", what, err)
}
