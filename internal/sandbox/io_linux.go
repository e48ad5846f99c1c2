//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// blkioGroup is a sandbox's group in the hierarchy of v1 for block devices. Only sandboxes that are bounded there have one, and processes stay in the
// one that they were born in: executions need none of their own.
func (r *Runtime) blkioGroup(id string) group { return group{hierarchies: r.blkio, rel: id} }

// ioControl says whether, and how, block devices can be bounded.
func (r *Runtime) ioControl() (bool, string) {
	const bounded = "; sandboxes are bounded where their limits say so"
	if _, ok := r.group("").file("io", "-", "io.max"); ok {
		return true, "v2 io, with equal shares" + bounded
	}
	if _, ok := r.ioGroup("").file("blkio", "blkio.throttle.read_bps_device", "-"); ok {
		return true, "v1 blkio" + bounded
	}
	return false, "the controller is not mounted or not writable: reading from block devices cannot be bounded. What sandboxes write is in memory"
}

// ioGroup is where v1 bounds block devices: in a hierarchy of their own, or in one that they share.
func (r *Runtime) ioGroup(id string) group {
	if len(r.blkio) > 0 {
		return r.blkioGroup(id)
	}
	return r.group(id)
}

// boundIO bounds a sandbox on the block devices that its root lies on. It returns what process 1 joins for that, besides its other groups.
func (r *Runtime) boundIO(spec Spec) (join []*os.File, err error) {
	limits := spec.Limits
	if limits.IOBytes == 0 && limits.IOPS == 0 {
		return nil, nil
	}
	if ok, detail := r.ioControl(); !ok {
		if r.cfg.AllowUnconfined {
			return nil, nil
		}
		return nil, fmt.Errorf("%w I/O limit: %s", ErrInvalid, detail)
	}
	devices, err := blockDevices(spec.Root)
	if err != nil || len(devices) == 0 {
		return nil, err
	}
	if path, ok := r.group(spec.ID).file("io", "", "io.max"); ok {
		for _, d := range devices {
			if err := writeFile(path, ioMax(d, limits)); err != nil {
				return nil, fmt.Errorf("bound the I/O on %s: %w", d, err)
			}
		}
		return nil, nil
	}
	g := r.ioGroup(spec.ID)
	if len(r.blkio) > 0 {
		if err := g.make(); err != nil {
			return nil, err
		}
	}
	for file, value := range map[string]int64{"bps": limits.IOBytes, "iops": limits.IOPS} {
		if value == 0 {
			continue
		}
		for _, verb := range []string{"read", "write"} {
			path, _ := g.file("blkio", "blkio.throttle."+verb+"_"+file+"_device", "")
			for _, d := range devices {
				if err := writeFile(path, d+" "+strconv.FormatInt(value, 10)); err != nil {
					return nil, fmt.Errorf("bound the I/O on %s: %w", d, err)
				}
			}
		}
	}
	if len(r.blkio) == 0 {
		return nil, nil
	}
	return g.join()
}

func ioMax(device string, l Limits) string {
	line := device
	if l.IOBytes > 0 {
		line += fmt.Sprintf(" rbps=%d wbps=%[1]d", l.IOBytes)
	}
	if l.IOPS > 0 {
		line += fmt.Sprintf(" riops=%d wiops=%[1]d", l.IOPS)
	}
	return line
}

// blockDevices are the disks, as major:minor, that the sources of a root lie on. The kernel bounds whole disks, not partitions.
func blockDevices(root Root) ([]string, error) {
	sources := slices.Clone(root.Lower)
	for _, b := range root.Binds {
		if b.Source != "" {
			sources = append(sources, b.Source)
		}
	}
	var found []string
	for _, source := range sources {
		var stat unix.Stat_t
		if err := unix.Stat(source, &stat); err != nil {
			return nil, fmt.Errorf("look for the disk of %s: %w", source, err)
		}
		major, minor := unix.Major(stat.Dev), unix.Minor(stat.Dev)
		if major == 0 {
			var system unix.Statfs_t
			if err := unix.Statfs(source, &system); err == nil && (system.Type == unix.TMPFS_MAGIC || system.Type == unix.RAMFS_MAGIC) {
				continue
			}
			return nil, fmt.Errorf("%w I/O limit: %s lies on a file system that names no disk, such as overlay, btrfs or nfs", ErrInvalid, source)
		}
		disk, err := wholeDisk(fmt.Sprintf("%d:%d", major, minor))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(found, disk) {
			found = append(found, disk)
		}
	}
	return found, nil
}

func wholeDisk(device string) (string, error) {
	at := filepath.Join("/sys/dev/block", device)
	if _, err := os.Stat(filepath.Join(at, "partition")); errors.Is(err, os.ErrNotExist) {
		return device, nil
	}
	at, err := filepath.EvalSymlinks(at)
	if err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", device, err)
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(at), "dev"))
	if err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", device, err)
	}
	return strings.TrimSpace(string(text)), nil
}
