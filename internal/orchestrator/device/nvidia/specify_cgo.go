//go:build linux && cgo

package nvidia

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
)

// specified are the functions that making a specification calls. A driver that has them has the others too, which depend on what GPUs it finds.
var specified = []string{
	"nvmlInit_v2", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID",
	"nvmlDeviceGetMinorNumber", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceIsMigDeviceHandle", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount",
	"nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId",
}

// Specify makes a specification in the Container Device Interface of GPUs and MIG instances with these ids, by the vendor's own library: their nodes, and the driver's files of
// this machine. It has no hooks and no sockets, and lies nowhere but in the answer. It looks through directories, and may take a second: until the next look at the GPUs it
// is the same for the same ids. Nobody writes to it.
func (p *Plugin) Specify(ctx context.Context, ids []string) ([]byte, error) {
	key := strings.Join(slices.Sorted(slices.Values(ids)), ",")
	p.mu.Lock()
	made, looks := p.specs[key], p.looks
	p.mu.Unlock()
	if made != nil {
		return made, nil
	}
	made, err := p.specify(ctx, ids)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if looks == p.looks && len(p.specs) < maxSpecs {
		p.specs[key] = made
	}
	return made, nil
}

// maxSpecs bounds how many sets of ids have their specification kept.
const maxSpecs = 64

func (p *Plugin) specify(ctx context.Context, ids []string) ([]byte, error) {
	l := p.library
	for _, name := range specified {
		if !l.offers([]string{name}) {
			return nil, fault.New(fault.Unsupported, "the driver's library is not there or too old for it: it does not have %s", name)
		}
	}
	namer, err := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID)
	if err != nil {
		return nil, err
	}
	made := make(chan []byte, 1)
	err = l.guarded(ctx, "making a device specification", 6*p.cfg.CallTimeout, func() error {
		maker, err := nvcdi.New(
			nvcdi.WithMode(nvcdi.ModeNvml), nvcdi.WithNvmlLib(l.nvml), nvcdi.WithDeviceNamers(namer), nvcdi.WithVendor(Vendor+".com"), nvcdi.WithClass(Type),
			nvcdi.WithDriverRoot(p.cfg.Root), nvcdi.WithDevRoot(p.cfg.Root), nvcdi.WithLogger(muted{p.cfg.Log}), nvcdi.WithDisabledHooks(nvcdi.AllHooks),
			nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils, nvcdi.FeatureDisableIPCDiscoverer, nvcdi.FeatureNoAdditionalGIDsForDeviceNodes),
		)
		if err != nil {
			return err
		}
		spec, err := maker.GetSpec(slices.Clone(ids)...)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if _, err := spec.WriteTo(&b); err != nil {
			return err
		}
		made <- b.Bytes()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make a specification by NVIDIA's library: %w", err)
	}
	return <-made, nil
}

// muted logs what a library of others says, for who looks for it.
type muted struct{ logging.Logger }

func (m muted) Infof(format string, args ...any)    { m.Debugf(format, args...) }
func (m muted) Warningf(format string, args ...any) { m.Debugf(format, args...) }
func (m muted) Errorf(format string, args ...any)   { m.Debugf(format, args...) }
func (m muted) Tracef(format string, args ...any)   { m.Debugf(format, args...) }
