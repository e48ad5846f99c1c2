package nvidia

import (
	"time"

	"rockpool/internal/logging"
)

// Name is the plugin's.
const Name = "nvidia"

// Vendor and Type of all devices found here.
const (
	Vendor = "nvidia"
	Type   = "gpu"
)

// VisibleDevices is the variable by which tasks are told of their GPUs.
const VisibleDevices = "NVIDIA_VISIBLE_DEVICES"

// MemoryShare is the variable by which tasks on slots are told how much memory of each GPU is theirs: <uuid>=<MiB>, with commas. Nothing but the program itself
// keeps to it, for GPUs that programs take turns on do not bound the memory of one of them.
const MemoryShare = "ROCKPOOL_GPU_MEMORY_MIB"

// Slots says how GPUs are shared by turns.
type Slots struct {
	Count    int      // of each GPU, 2 to 64; less = they are not shared
	MemoryMB int      // of each slot; 0 = an equal part
	Of       []string // UUIDs, PCI bus ids or models of the GPUs that are shared; empty = all
}

// Config is what a plugin may be told. Zero values have defaults.
type Config struct {
	// Ignore names GPUs that are not offered, by UUID or PCI bus id. The parts of a GPU that is ignored are ignored too.
	Ignore []string
	// Slots are offered in place of the GPUs that they are made of. A GPU in MIG mode has its own parts and no slots.
	Slots Slots
	// Poll is how often everything is looked at; errors that the driver reports by itself are known at once. 0 = 30 s.
	Poll time.Duration
	// CallTimeout is how long one call into the library may take; the first one may take six times as long, for GPUs wake up. 0 = 5 s.
	CallTimeout time.Duration
	// Library is the driver's library; "" = libnvidia-ml.so.1, where the system's loader finds it.
	Library string
	// Proc and Sys are where those file systems are; "" = /proc and /sys.
	Proc, Sys string
	// Root is where the driver's files and device nodes are, as they are found to make a specification; "" = /.
	Root string
	Log  logging.Logger
}

func (c Config) withDefaults() Config {
	if c.Poll <= 0 {
		c.Poll = 30 * time.Second
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = 5 * time.Second
	}
	if c.Library == "" {
		c.Library = "libnvidia-ml.so.1"
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	if c.Sys == "" {
		c.Sys = "/sys"
	}
	if c.Root == "" {
		c.Root = "/"
	}
	if c.Log == nil {
		c.Log = logging.Discard()
	}
	return c
}
