//go:build !linux

package raw

import (
	"context"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// Driver does nothing on this system: it cannot find processes again safely.
type Driver struct{ cfg Config }

// New makes a driver.
func New(cfg Config) *Driver { return &Driver{cfg: cfg} }

// Fingerprint says that the driver is for Linux.
func (d *Driver) Fingerprint(context.Context) model.DriverInfo {
	if !d.cfg.Enabled {
		return disabled()
	}
	return model.DriverInfo{HealthDescription: "driver raw_exec needs Linux"}
}

func (d *Driver) Start(context.Context, driver.TaskConfig) (driver.Task, error) {
	return nil, driver.ErrNotSupported
}

func (d *Driver) Recover(context.Context, driver.TaskConfig) (driver.Task, error) {
	return nil, driver.ErrNotSupported
}

func (d *Driver) Cleanup(context.Context, string) error { return nil }
