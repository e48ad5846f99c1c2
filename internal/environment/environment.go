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
	PoolSizeMin   uint   // bounds of a size that follows the claims
	PoolSizeMax   uint   // 0 = PoolSize is the size
	CPULimit      uint   // MHz
	MemoryLimit   uint   // MB
	Image         string // as the client gave it
	Pin           Pin
	NetworkAccess bool
	ExposedPorts  []uint16
	Egress        []string // what runners with network access may reach: prefixes, addresses, names, each with an optional :port; empty = all that is public
	Runtime       string   // OCI runtime of the nodes; "" = the driver's own
	Devices       []Device // that each runner is given
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
	switch {
	case e.PoolSizeMax == 0 && e.PoolSizeMin > 0:
		return fault.New(fault.Invalid, "poolSizeMin needs poolSizeMax: together they bound a size that follows the claims")
	case e.PoolSizeMax > 0 && (e.PoolSize < e.PoolSizeMin || e.PoolSize > e.PoolSizeMax):
		return fault.New(fault.Invalid, "prewarmingPoolSize %d is not between poolSizeMin %d and poolSizeMax %d", e.PoolSize, e.PoolSizeMin, e.PoolSizeMax)
	}
	if len(e.Egress) > 0 && !e.NetworkAccess {
		return fault.New(fault.Invalid, "networkEgress limits what runners with network access may reach: set networkAccess, or leave it out")
	}
	for _, rule := range e.Egress {
		if rule == "" || strings.ContainsAny(rule, ", \t\r\n") {
			return fault.New(fault.Invalid, "networkEgress: %q is not a prefix, an address or a name with an optional :port", rule)
		}
	}
	return validateDevices(e.Devices)
}

// Settings is a fingerprint of everything a runner's job is derived from. Runners whose fingerprint differs from their
// environment's are out of date.
func (e Environment) Settings() string {
	ports := slices.Clone(e.ExposedPorts)
	slices.Sort(ports)
	if !e.NetworkAccess {
		ports = nil // without network there is nothing to map
	}
	return fmt.Sprintf("%d/%d/%t/%v/%v/%s/%v/%s %s", e.CPULimit, e.MemoryLimit, e.NetworkAccess, ports, e.Egress, e.Runtime, e.Devices, e.Image, e.Pin.Digest)
}

// Equal reports whether two definitions say the same, pool size included.
func (e Environment) Equal(o Environment) bool {
	return e.ID == o.ID && e.PoolSize == o.PoolSize && e.PoolSizeMin == o.PoolSizeMin && e.PoolSizeMax == o.PoolSizeMax && e.Settings() == o.Settings() && slices.Equal(e.ExposedPorts, o.ExposedPorts)
}

// FixedImage reports whether the same reference always means the same image, so that there is nothing to pull anew: the
// node's own system, a directory, a reference by digest, or one whose digest was learned.
func (e Environment) FixedImage() bool {
	return e.Pin.Digest != "" || e.Image == "host" || strings.HasPrefix(e.Image, "dir:") || strings.Contains(e.Image, "@sha256:")
}
