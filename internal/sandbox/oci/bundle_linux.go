//go:build linux && cgo

package oci

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"rockpool/internal/sandbox"
)

const (
	cpuPeriod = 100_000 // microseconds
	// helpers is how many processes of ours fit beside the limit of the tenant's: process 1, one for each of some executions, and
	// the threads of the runtime while it starts one.
	helpers = 64
)

// Each is covered: what /proc tells about the host, and what could change it.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/scsi", "/proc/tty", "/proc/sysvipc",
		"/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kallsyms", "/proc/kmsg", "/proc/latency_stats", "/proc/timer_list",
		"/proc/sched_debug", "/proc/config.gz", "/proc/cmdline", "/proc/interrupts", "/proc/kpagecount", "/proc/kpageflags",
		"/proc/kpagecgroup", "/proc/modules", "/proc/iomem", "/proc/ioports", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/pagetypeinfo",
		"/proc/partitions", "/proc/diskstats", "/proc/swaps", "/proc/zoneinfo", "/proc/softirqs", "/proc/schedstat", "/proc/mtrr",
		"/sys", // where a runtime mounts one by itself
	}
	readonlyPaths = []string{"/proc/sys", "/proc/sysrq-trigger"}
)

// helperPower is what starting and ending programs takes. Our program gives up all else first, and a tenant's program gets
// none of it.
var helperPower = []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"}

func rlimits(l sandbox.Limits) []specs.POSIXRlimit {
	var all []specs.POSIXRlimit
	for _, r := range []struct {
		name  string
		value int64
	}{
		{"RLIMIT_CORE", 0}, {"RLIMIT_NOFILE", l.OpenFiles}, {"RLIMIT_FSIZE", l.FileSizeBytes}, {"RLIMIT_MEMLOCK", 8 << 20},
		{"RLIMIT_MSGQUEUE", 800 << 10}, {"RLIMIT_SIGPENDING", 4096}, {"RLIMIT_RTPRIO", 0}, {"RLIMIT_NICE", 0},
	} {
		all = append(all, specs.POSIXRlimit{Type: r.name, Hard: uint64(r.value), Soft: uint64(r.value)})
	}
	return all
}

// waiter is process 1: our program without an argument, without any power, as a user that is nobody else's.
func waiter(l sandbox.Limits) *specs.Process {
	score := 0
	return &specs.Process{Args: []string{insidePath}, Env: []string{}, Cwd: "/", User: specs.User{UID: helperID, GID: helperID},
		Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true, Rlimits: rlimits(l), OOMScoreAdj: &score}
}

// starter is our program with one argument: it becomes the parent of an execution. It is the same for all of a sandbox; what
// to run comes through a descriptor, so that no argument and no variable of a tenant is ever an argument of the runtime.
func starter(l sandbox.Limits) *specs.Process {
	p := waiter(l)
	p.Args = []string{insidePath, "run"}
	p.User = specs.User{}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: helperPower, Effective: helperPower, Permitted: helperPower}
	return p
}

// bundle is the container's config.json.
func (r *Runtime) bundle(spec sandbox.Spec, st state, mounts []specs.Mount) *specs.Spec {
	l := spec.Limits
	linux := &specs.Linux{
		MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace, Path: spec.NetNS},
		},
	}
	if !r.kind.ownGroups {
		linux.CgroupsPath, linux.Resources = "/"+r.cfg.CgroupParent+"/"+groupName(spec.ID), resources(l)
		linux.Resources.Devices = append(linux.Resources.Devices, allowed(spec.Devices)...)
	}
	proc := []string{"nosuid", "nodev", "noexec"}
	if r.kind.userNS {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: st.IDBase, Size: idsPerSandbox}}
		linux.UIDMappings, linux.GIDMappings = ids, ids
	}
	if !r.kind.ownKernel {
		proc = append(proc, "hidepid=2", fmt.Sprintf("gid=%d", helperID))
	}
	return &specs.Spec{
		Version: "1.0.2", Hostname: spec.Hostname, Linux: linux, Process: waiter(l),
		Root: &specs.Root{Path: r.rootPath(st.Slot)},
		Mounts: append([]specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: proc},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=256"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "mode=1777",
				fmt.Sprintf("size=%d", min(l.DiskBytes, 64<<20)), "nr_inodes=4096"}},
		}, mounts...),
	}
}

// allowed are the rules of the control group for devices that a sandbox is given. The runtime adds the harmless ones.
func allowed(given []sandbox.Device) (rules []specs.LinuxDeviceCgroup) {
	for _, d := range given {
		major, minor, kind := int64(d.Major), int64(d.Minor), "c"
		if d.Block {
			kind = "b"
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: d.Access})
	}
	return rules
}

func resources(l sandbox.Limits) *specs.LinuxResources {
	pids := l.PIDs + helpers
	shares := uint64(max(2, min(l.CPUShares, 262144)))
	all := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: &l.MemoryBytes, Swap: &l.MemoryBytes},
		Pids:    &specs.LinuxPids{Limit: &pids},
		CPU:     &specs.LinuxCPU{Shares: &shares},
	}
	if l.CPUQuota > 0 {
		period, quota := uint64(cpuPeriod), max(1000, int64(l.CPUQuota*cpuPeriod))
		all.CPU.Period, all.CPU.Quota = &period, &quota
	}
	return all
}
