//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted control group tree in which the runtime may make groups: one of several with v1, the only one
// with v2; a hybrid machine has both, the controllers in the first and cgroup.kill in the second.
type hierarchy struct {
	unified     bool
	controllers []string
	base        string // directory of the runtime's parent group
	mount       cgroupMount
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// wanted are the controllers that bound a sandbox. Others are left alone: each joined hierarchy costs time. That of v1 for block devices, "blkio", is
// joined only by sandboxes that are bounded there, and so is "devices" by those that are given some.
var wanted = []string{"memory", "pids", "cpu", "cpuacct", "io", "blkio", "devices"}

type cgroupMount struct {
	unified     bool
	root        string // which group of the hierarchy is shown at point
	point       string
	controllers []string
	options     []string // of v2
}

// parseCgroupMounts finds the control group mounts in the text of /proc/self/mountinfo.
func parseCgroupMounts(mountinfo string) []cgroupMount {
	var found []cgroupMount
	for line := range strings.Lines(mountinfo) {
		front, back, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(front), strings.Fields(back)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		m := cgroupMount{root: unescape(left[3]), point: unescape(left[4])}
		switch right[0] {
		case "cgroup2":
			m.unified, m.options = true, strings.Split(right[2], ",")
		case "cgroup":
			for _, option := range strings.Split(right[2], ",") {
				if slices.Contains(wanted, option) {
					m.controllers = append(m.controllers, option)
				}
			}
			if len(m.controllers) == 0 {
				continue
			}
		default:
			continue
		}
		found = append(found, m)
	}
	return found
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// parseOwnGroups reads /proc/self/cgroup: controller to path, "" for the unified hierarchy.
func parseOwnGroups(text string) map[string]string {
	own := make(map[string]string)
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, controller := range strings.Split(parts[1], ",") {
			own[controller] = parts[2]
		}
	}
	return own
}

// findHierarchies makes the parent group in every usable hierarchy.
func findHierarchies(parent string) ([]hierarchy, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := parseOwnGroups(string(groups))
	var found []hierarchy
	var problems []error
	seen := make(map[string]bool)
	for _, m := range parseCgroupMounts(string(mountinfo)) {
		key := strings.Join(m.controllers, ",")
		if seen[key] {
			continue // mounted a second time, in a container for instance
		}
		h, err := openHierarchy(m, own, parent)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		seen[key] = true
		found = append(found, h)
	}
	return found, errors.Join(problems...)
}

// openHierarchy puts the parent group at the root of what is mounted, or below the process's own group where the root is
// not ours to write: in a container, or in a delegated service.
func openHierarchy(m cgroupMount, own map[string]string, parent string) (hierarchy, error) {
	h := hierarchy{unified: m.unified, controllers: m.controllers, mount: m}
	key := ""
	if !m.unified {
		key = m.controllers[0]
	}
	ownPath := m.point
	if rel, err := filepath.Rel(m.root, own[key]); err == nil && !strings.HasPrefix(rel, "..") {
		ownPath = filepath.Join(m.point, rel)
	}
	var problems []error
	for _, at := range slices.Compact([]string{m.point, ownPath}) {
		base := filepath.Join(at, parent)
		if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			problems = append(problems, err)
			continue
		}
		if m.unified {
			controllers, err := delegate(at)
			if err == nil {
				err = enableControllers(base, controllers)
			}
			if err != nil {
				_ = os.Remove(base)
				problems = append(problems, err)
				continue
			}
			h.controllers = controllers
		}
		h.base = base
		return h, nil
	}
	return h, errors.Join(problems...)
}

// delegate lets the children of a v2 group use the wanted controllers that the group has. A group other than the root
// must hold no process then ("no internal processes", cgroup-v2.rst): ours move to a leaf first.
func delegate(group string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	var controllers []string
	for _, c := range strings.Fields(string(text)) {
		if slices.Contains(wanted, c) {
			controllers = append(controllers, c)
		}
	}
	err = enableControllers(group, controllers)
	// Again, as a process may fork between being listed and being moved, and its children are born in the leaf only then; one that ends cannot be moved, and is there until it has.
	for wait := 100 * time.Microsecond; errors.Is(err, unix.EBUSY) && wait < time.Second; wait *= 2 {
		if err := empty(group); err != nil {
			return nil, err
		}
		if err = enableControllers(group, controllers); errors.Is(err, unix.EBUSY) {
			time.Sleep(wait)
		}
	}
	return controllers, err
}

// empty moves the processes of a group to a leaf below it.
func empty(group string) error {
	leaf := filepath.Join(group, "rockpool-node")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	pids, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(pids)) {
		if err := writeFile(filepath.Join(leaf, "cgroup.procs"), pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s to a leaf group: %w", pid, err)
		}
	}
	return nil
}

func enableControllers(group string, controllers []string) error {
	if len(controllers) == 0 {
		return nil
	}
	return writeFile(filepath.Join(group, "cgroup.subtree_control"), "+"+strings.Join(controllers, " +"))
}

// writeFile writes without creating: a control file that is not there is an error. As with readControl, the poller hears nothing of it.
func writeFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		_, err := unix.Write(fd, []byte(text))
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return &os.PathError{Op: "write", Path: path, Err: err}
		}
	}
}

const favourMoves = "favordynmods"

// favour has v2 move processes between groups without waiting for an RCU grace period, which costs an execution 5 to 20 ms on a machine that is
// otherwise idle. The mount option, of Linux 6.0, is the machine's: it makes forks a little dearer, and stays. Only the file system is changed, with
// the options that it has, not the flags of the mount.
func (m cgroupMount) favour() (changed bool, err error) {
	if slices.Contains(m.options, favourMoves) {
		return false, nil
	}
	fd, err := unix.Fspick(unix.AT_FDCWD, m.point, unix.FSPICK_CLOEXEC|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(fd) }()
	for _, option := range append(slices.Clone(m.options), favourMoves) {
		if err := unix.FsconfigSetFlag(fd, option); err != nil {
			return false, fmt.Errorf("%s: %w", option, err)
		}
	}
	return true, unix.FsconfigReconfigure(fd)
}
