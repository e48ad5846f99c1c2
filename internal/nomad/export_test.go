package nomad

import (
	"context"
	"time"

	"github.com/hashicorp/nomad/api"
)

// KeptTime is how long a key stands for a runner.
const KeptTime = keptTime

// Names of what a runner's job consists of.
const (
	MainGroup, MainTask, ConfigGroup = mainGroup, mainTask, configGroup
)

// Swept is what the removal of old keys remembers.
type Swept = map[string]change

// Sweep removes the keys that were over at a time.
func (k *Keys) Sweep(ctx context.Context, seen Swept, now time.Time) error {
	return k.sweep(ctx, seen, now)
}

// Probe finds out what the cluster offers.
func (c *Client) Probe(ctx context.Context) error { return c.probe(ctx) }

// Register registers a job as it is.
func (c *Client) Register(job *api.Job) error {
	_, _, err := c.api.Jobs().Register(job, nil)
	return err
}
