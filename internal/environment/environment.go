package environment

import (
	"fmt"
	"slices"
	"strings"

	"rockpool/internal/fault"
)

// ID names an execution environment. The platform chooses it.
type ID int

// Environment is the definition of an execution environment: what its runners are made of and how many stand ready.
type Environment struct {
	ID            ID
	PoolSize      uint
	CPULimit      uint   // MHz
	MemoryLimit   uint   // MB
	Image         string // as the client gave it
	Pin           Pin
	NetworkAccess bool
	ExposedPorts  []uint16
}

// Pin is what an image's reference meant when the environment was put. The zero Pin says that it could not be learned.
type Pin struct {
	Digest    string
	Reference string // what runners are told
}

const maxInt32 = 1<<31 - 1

// Validate refuses what no cluster can be told.
func (e Environment) Validate() error {
	for _, l := range []struct {
		name  string
		value uint
	}{{"prewarmingPoolSize", e.PoolSize}, {"cpuLimit", e.CPULimit}, {"memoryLimit", e.MemoryLimit}} {
		if l.value > maxInt32 {
			return fault.New(fault.Internal, "%s is too large: %d", l.name, l.value)
		}
	}
	return nil
}

// Settings is a fingerprint of everything a runner's job is derived from. Runners whose fingerprint differs from their
// environment's are out of date.
func (e Environment) Settings() string {
	ports := slices.Clone(e.ExposedPorts)
	slices.Sort(ports)
	if !e.NetworkAccess {
		ports = nil // without network there is nothing to map
	}
	return fmt.Sprintf("%d/%d/%t/%v/%s %s", e.CPULimit, e.MemoryLimit, e.NetworkAccess, ports, e.Image, e.Pin.Digest)
}

// Equal reports whether two definitions say the same, pool size included.
func (e Environment) Equal(o Environment) bool {
	return e.ID == o.ID && e.PoolSize == o.PoolSize && e.Settings() == o.Settings() && slices.Equal(e.ExposedPorts, o.ExposedPorts)
}

// FixedImage reports whether the same reference always means the same image, so that there is nothing to pull anew: the
// node's own system, a path, a reference by digest, or one whose digest was learned.
func (e Environment) FixedImage() bool {
	return e.Pin.Digest != "" || e.Image == "host" || strings.HasPrefix(e.Image, "/") || strings.Contains(e.Image, "@sha256:")
}
