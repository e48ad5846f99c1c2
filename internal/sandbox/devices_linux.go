//go:build linux && cgo

package sandbox

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // sets the rules for both versions
	devices "github.com/opencontainers/cgroups/devices/config"
)

const (
	maxBinds   = 256 // a GPU's driver has some seventy files
	maxDevices = 256
)

// harmless are the devices of every sandbox, with the pseudo-terminals of its own devpts. To make is process 1's: nothing inside has the power to.
var harmless = []struct {
	major, minor int64
	access       devices.Permissions
}{
	{1, 3, "rwm"}, {1, 5, "rwm"}, {1, 7, "rwm"}, {1, 8, "rwm"}, {1, 9, "rwm"}, {5, 0, "rwm"}, {5, 2, "rw"}, {136, devices.Wildcard, "rw"},
}

// ownNames are what /dev has of its own.
var ownNames = map[string]bool{
	"null": true, "zero": true, "full": true, "random": true, "urandom": true, "tty": true, "ptmx": true, "fd": true, "stdin": true, "stdout": true, "stderr": true,
	"pts": true, "shm": true, "console": true, "mqueue": true,
}

const noDeviceControl = "the v1 controller is not mounted or not writable, and v2 is not in use: no sandbox can be given devices"

// checkDevices refuses what is no place in /dev, and two devices at one.
func checkDevices(given []Device) error {
	if len(given) > maxDevices {
		return fmt.Errorf("%w devices: at most %d", ErrInvalid, maxDevices)
	}
	seen := map[string]bool{} // true = a node, false = a directory that one is in
	for _, d := range given {
		name, below := strings.CutPrefix(d.Path, "/dev/")
		first, _, _ := strings.Cut(name, "/")
		switch {
		case !below || path.Clean(d.Path) != d.Path || len(d.Path) > 255 || strings.ContainsRune(d.Path, 0) || strings.Count(name, "/") > 4:
			return fmt.Errorf("%w device %q: a clean path below /dev is wanted", ErrInvalid, d.Path)
		case ownNames[first]:
			return fmt.Errorf("%w device %q: every sandbox has a /dev/%s of its own", ErrInvalid, d.Path, first)
		case d.Access != "r" && d.Access != "w" && d.Access != "rw":
			return fmt.Errorf("%w device %q: the access is %q; r, w or rw is wanted", ErrInvalid, d.Path, d.Access)
		}
		if _, taken := seen[d.Path]; taken {
			return fmt.Errorf("%w device %q: another one has its place", ErrInvalid, d.Path)
		}
		seen[d.Path] = true
		for dir := path.Dir(d.Path); dir != "/dev"; dir = path.Dir(dir) {
			if seen[dir] {
				return fmt.Errorf("%w device %q: another one has its place", ErrInvalid, dir)
			}
			seen[dir] = false
		}
	}
	return nil
}

// checkMade refuses targets that are no plain path, or where the sandbox has something of its own.
func (b Bind) checkMade() error {
	for name, target := range b.Links {
		if b.Source != "" || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || target == "" || strings.ContainsRune(target, 0) || len(target) > 255 {
			return fmt.Errorf("%w bind %s: links have plain names, and lie in a directory without a source", ErrInvalid, b.Target)
		}
	}
	if !b.Made {
		return nil
	}
	if path.Clean(b.Target) != b.Target || strings.ContainsRune(b.Target, 0) {
		return fmt.Errorf("%w bind %q: a clean absolute path is wanted", ErrInvalid, b.Target)
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if b.Target == own || strings.HasPrefix(b.Target, own+"/") {
			return fmt.Errorf("%w bind %q: %s is the sandbox's own", ErrInvalid, b.Target, own)
		}
	}
	return nil
}

// Mode is that of a device's node. What is given to a sandbox is given to all of its users.
func (d Device) Mode() uint32 {
	var mode uint32
	if strings.Contains(d.Access, "r") {
		mode |= 0o444
	}
	if strings.Contains(d.Access, "w") {
		mode |= 0o222
	}
	return mode
}

// devicesGroup is a sandbox's group in the hierarchy of v1 for devices, as blkioGroup is: only sandboxes with devices have one.
func (r *Runtime) devicesGroup(id string) group { return group{hierarchies: r.devices, rel: id} }

// deviceControl says whether, and how, a sandbox can be held to the devices that it is given.
func (r *Runtime) deviceControl() (bool, string) {
	if g, v2, ok := r.deviceGroup(""); ok {
		how := "v1 devices"
		if v2 {
			how = "v2, a BPF program"
		}
		return true, how + "; sandboxes that are given devices open these and no others, below " + g
	}
	return false, noDeviceControl
}

// deviceGroup is the directory of the group that holds a sandbox to its devices, and whether it is of v2, where a program does that and no controller.
func (r *Runtime) deviceGroup(id string) (dir string, v2, ok bool) {
	for _, h := range r.devices {
		return r.devicesGroup(id).path(h), false, true
	}
	for _, h := range r.hierarchies {
		if h.has("devices") || h.unified {
			return r.group(id).path(h), h.unified, true
		}
	}
	return "", false, false
}

// allowDevices holds a sandbox with devices to these. It returns what process 1 joins for that, besides its other groups. The rules are the group's: they stay
// in force without this process.
func (r *Runtime) allowDevices(spec Spec) ([]*os.File, error) {
	if len(spec.Devices) == 0 {
		return nil, nil
	}
	dir, v2, ok := r.deviceGroup(spec.ID)
	if !ok {
		return nil, fmt.Errorf("%w devices: %s", ErrInvalid, noDeviceControl)
	}
	if len(r.devices) > 0 {
		if err := r.devicesGroup(spec.ID).make(); err != nil {
			return nil, err
		}
	}
	if err := holdTo(dir, v2, spec.Devices); err != nil {
		return nil, err
	}
	if len(r.devices) == 0 {
		return nil, nil
	}
	return r.devicesGroup(spec.ID).join()
}

// holdTo sets the rules of a group, of which nothing is joined yet.
func holdTo(dir string, v2 bool, given []Device) error {
	set := cgroups.DevicesSetV1
	if v2 {
		set = cgroups.DevicesSetV2
	}
	if err := set(dir, &cgroups.Resources{Devices: deviceRules(given)}); err != nil {
		return fmt.Errorf("hold the sandbox to its devices: %w", err)
	}
	return nil
}

// deviceRules refuse everything but the harmless devices and those that are given.
func deviceRules(given []Device) []*devices.Rule {
	rules := []*devices.Rule{{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm"}}
	for _, h := range harmless {
		rules = append(rules, &devices.Rule{Type: devices.CharDevice, Major: h.major, Minor: h.minor, Permissions: h.access, Allow: true})
	}
	for _, d := range given {
		kind := devices.CharDevice
		if d.Block {
			kind = devices.BlockDevice
		}
		rules = append(rules, &devices.Rule{Type: kind, Major: int64(d.Major), Minor: int64(d.Minor), Permissions: devices.Permissions(d.Access) + "m", Allow: true})
	}
	return rules
}
