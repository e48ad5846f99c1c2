//go:build !linux || !cgo

package nvidia

import (
	"context"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/device"
)

// Plugin offers nothing: the driver's library cannot be called from this program.
type Plugin struct{}

// New needs a program for Linux that was built with cgo to be of use.
func New(Config) *Plugin { return &Plugin{} }

// Name is "nvidia".
func (p *Plugin) Name() string { return Name }

// Watch says that nothing can be found.
func (p *Plugin) Watch(ctx context.Context, publish func(device.Report)) error {
	publish(device.Report{Description: "this program was built without cgo or not for Linux, and cannot call NVIDIA's driver: no GPUs are offered"})
	<-ctx.Done()
	return ctx.Err()
}

// Reserve knows no instance.
func (p *Plugin) Reserve(ids []string) (map[string]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	return nil, fault.New(fault.NotFound, "GPU %s is not there: this program cannot call NVIDIA's driver", ids[0])
}

// Specify knows no instance.
func (p *Plugin) Specify(context.Context, []string) ([]byte, error) {
	return nil, fault.New(fault.Unsupported, "this program cannot call NVIDIA's driver")
}

// Residue knows no instance.
func (p *Plugin) Residue(_ context.Context, id string) (string, error) {
	return "", fault.New(fault.NotFound, "GPU %s is not there: this program cannot call NVIDIA's driver", id)
}

// Stats are none.
func (p *Plugin) Stats(context.Context) ([]device.Sample, error) { return nil, nil }
