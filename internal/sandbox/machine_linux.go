//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// probe finds out what the kernel and this process's rights allow. It fails with one sentence that names all that is
// missing and what to do.
func (r *Runtime) probe() error {
	var missing []string
	lack := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	if os.Geteuid() != 0 {
		lack("root (start the node as root)")
	} else if names := missingCapabilities(); len(names) > 0 {
		lack("the capabilities %s (in a container, start it privileged)", strings.Join(names, ", "))
	}
	for name, nr := range map[string]string{"user": "user", "pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt"} {
		if _, err := os.Stat("/proc/self/ns/" + nr); err != nil {
			lack("%s namespaces (CONFIG_%s_NS)", name, strings.ToUpper(nr))
		}
	}
	if text, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(text)) == "0" {
		lack("user namespaces (set the sysctl user.max_user_namespaces above 0)")
	}
	systems, _ := os.ReadFile("/proc/filesystems")
	if !strings.Contains(string(systems), "\toverlay\n") && os.Geteuid() == 0 {
		lack("the overlay file system (modprobe overlay)")
	}
	// openat2 is Linux 5.6, mount_setattr 5.12: the younger one stands for the whole mount interface.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	if errors.Is(err, unix.ENOSYS) {
		lack("the mount_setattr call (Linux 5.12 or newer)")
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		lack("seccomp filters (CONFIG_SECCOMP_FILTER)")
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		lack("a mounted /proc")
	}
	r.bootID = strings.TrimSpace(string(boot))
	if len(missing) == 0 {
		if lacks := r.confineWith(findHierarchies(r.cfg.CgroupParent)); lacks != "" {
			lack("%s", lacks)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine cannot run sandboxes: it lacks %s", strings.Join(missing, "; "))
	}
	return nil
}

// confineWith takes over the hierarchies that were found. It returns what they lack for code that nobody trusts; the configuration may allow that, but
// not that there is none at all: programs are ended by their groups.
func (r *Runtime) confineWith(all []hierarchy, problem error) (lacks string) {
	r.hierarchies, r.blkio, r.devices = nil, nil, nil
	frozen := slices.ContainsFunc(all, func(h hierarchy) bool { return !h.unified && h.has("pids") })
	for _, h := range all {
		switch {
		case slices.Equal(h.controllers, []string{"blkio"}):
			r.blkio = []hierarchy{h}
		case slices.Equal(h.controllers, []string{"devices"}):
			r.devices = []hierarchy{h}
		case h.unified && len(h.controllers) == 0 && frozen:
			// Of a hybrid's v2 only cgroup.kill would be of use. But to move a process there waits for all processors to pass a quiet state, 5 to 20 ms on an
			// idle machine; with v1, forks can be stopped by the pids limit just as well.
			_ = unix.Rmdir(h.base)
		default:
			r.hierarchies = append(r.hierarchies, h)
		}
	}
	g := r.group("")
	_, memory := g.file("memory", "m", "m")
	_, pids := g.file("pids", "p", "p")
	if memory && pids || r.cfg.AllowUnconfined && len(r.hierarchies) > 0 {
		return ""
	}
	detail := ""
	if problem != nil {
		detail = ": " + strings.ReplaceAll(problem.Error(), "\n", ", ")
	}
	return fmt.Sprintf("writable memory and pids control groups (mount cgroup v2, or v1 with both controllers, writable for the node%s)", detail)
}

// missingCapabilities are those that making a sandbox takes and this process, although root, has not. Containers usually take them away.
func missingCapabilities() []string {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return []string{"(they cannot be read: " + err.Error() + ")"}
	}
	var names []string
	for _, c := range []struct {
		bit  int
		name string
	}{
		{unix.CAP_CHOWN, "CAP_CHOWN"}, {unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {unix.CAP_KILL, "CAP_KILL"}, {unix.CAP_MKNOD, "CAP_MKNOD"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_SETGID, "CAP_SETGID"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
	} {
		if sets[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			names = append(names, c.name)
		}
	}
	return names
}
