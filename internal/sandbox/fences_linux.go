//go:build linux && cgo

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Fences is the containment table: which walls stand on this kernel. After a [Runtime.SelfTest] each row says what was tried against it, and a wall
// that an attempt got through is not in force. What depends on the files of an image is known after the first sandbox was made.
func (r *Runtime) Fences() []Fence {
	r.mu.Lock()
	features, created, tried := r.features, r.created, r.tried
	r.mu.Unlock()
	var fences []Fence
	stands := func(wall Wall, name, detail string) {
		fences = append(fences, Fence{Wall: wall, Name: name, InForce: true, Detail: detail})
	}
	either := func(wall Wall, name string, standing bool, yes, no string) {
		f := Fence{Wall: wall, Name: name, InForce: standing, Detail: no}
		if standing {
			f.Detail = yes
		}
		fences = append(fences, f)
	}
	note := func(name string, good bool, detail string) {
		fences = append(fences, Fence{Wall: WallMachine, Name: name, InForce: good, Detail: detail, Note: true})
	}

	stands(WallNamespaces, "namespace.pid", "one for each sandbox, owned by the initial user namespace")
	stands(WallNamespaces, "namespace.mount", "one for each sandbox, owned by the initial user namespace; nothing propagates")
	stands(WallNamespaces, "namespace.network", "one for each sandbox; loopback only, unless the node has filled it")
	stands(WallNamespaces, "namespace.ipc", "one for each sandbox")
	stands(WallNamespaces, "namespace.uts", "one for each sandbox")
	stands(WallNamespaces, "namespace.cgroup", "one for each sandbox; no control group file system inside")
	stands(WallNamespaces, "namespace.user", fmt.Sprintf("65536 ids for each sandbox from %d", r.cfg.IDBase))
	_, timeErr := os.Stat("/proc/self/ns/time")
	either(WallNamespaces, "namespace.time", timeErr == nil && (!created || features&featureTime != 0), "uptime starts at zero",
		"the kernel has no time namespaces (Linux 5.6, CONFIG_TIME_NS); the host's uptime shows")

	stands(WallPrivilege, "privilege", "capabilities, bounding and ambient set empty; no_new_privs; secure bits locked")
	stands(WallCalls, "seccomp", "allow list "+filterHash(r.filter))

	abi, detail := landlockABI()
	scoped := abi >= landlockScopes && (!created || features&featureLandlock != 0)
	fences = append(fences, Fence{Wall: WallCalls, Name: "landlock", InForce: scoped, Detail: detail, Note: !scoped}) // a second wall: the first are namespaces

	stands(WallFiles, "files.root", "overlay on read-only layers, nosuid, nodev")
	stands(WallFiles, "files.disk", "what can be written lies on two tmpfs, bounded in bytes and inodes and charged to the sandbox")
	stands(WallFiles, "files.proc", "hidepid=2; host details masked; /proc/sys read-only")
	stands(WallFiles, "files.sys", "absent")
	stands(WallFiles, "files.dev", "null zero full random urandom tty, private devpts and shm; read-only")
	unmapped := "the file system of the image cannot be mapped (Linux 5.19 for overlay); its files show as nobody's"
	if !created {
		unmapped = "known after the first sandbox"
	}
	either(WallFiles, "files.idmap", created && features&featureIDMap != 0, "node files are mapped to the sandbox's ids", unmapped)

	stands(WallResources, "rlimits", "CORE=0, NOFILE, FSIZE, MEMLOCK, MSGQUEUE, SIGPENDING, RTPRIO=0")
	stands(WallResources, "oom", "executions 500, supervisor 0")

	g := r.group("")
	either(WallGroups, "cgroup.mode", len(r.hierarchies) > 0, r.cgroupMode(), "no control group is mounted and writable")
	for _, c := range []string{"memory", "pids", "cpu"} {
		path, ok := g.file(c, "-", "-")
		either(WallGroups, "cgroup."+c, ok, "below "+strings.TrimSuffix(path, "/-"), "the controller is not mounted or not writable: "+c+" is not limited")
	}
	swap, detail := g.swap()
	either(WallGroups, "cgroup.swap", swap, detail, detail)
	stands(WallGroups, "cgroup.kill", r.cgroupKill())
	io, detail := r.ioControl()
	fences = append(fences, Fence{Wall: WallGroups, Name: "cgroup.io", InForce: io, Detail: detail, Note: !io}) // what sandboxes write is in memory

	allowed, detail := r.deviceControl()
	fences = append(fences, Fence{Wall: WallGroups, Name: "cgroup.devices", InForce: allowed, Detail: detail, Note: !allowed}) // no sandbox is given any

	note("tier", true, "native: namespaces, seccomp and control groups on a shared kernel")
	release, known := kernelRelease()
	note("kernel", known, release)
	smt, detail := smtState()
	note("cpu.smt", smt, detail)
	mitigated, detail := vulnerabilities()
	note("cpu.vulnerabilities", mitigated, detail)

	for i := range fences {
		if o := tried[fences[i].Name]; o != nil {
			fences[i].Detail += "; " + o.String()
			fences[i].InForce = fences[i].InForce && len(o.through) == 0
		}
	}
	return fences
}

func (r *Runtime) cgroupMode() string {
	v1, v2 := false, false
	for _, h := range r.hierarchies {
		v1, v2 = v1 || !h.unified, v2 || h.unified
	}
	switch {
	case v1 && v2:
		return "v1 and v2 (hybrid)"
	case v1:
		return "v1"
	}
	return "v2"
}

func (r *Runtime) cgroupKill() string {
	for _, h := range r.hierarchies {
		if h.unified {
			return "cgroup.kill"
		}
	}
	return "pids limit, then signals"
}

// swap says whether swap is bounded together with memory.
func (g group) swap() (bool, string) {
	if path, ok := g.file("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); ok {
		if _, err := os.Stat(path); err == nil {
			return true, "counted with memory"
		}
	}
	if text, err := os.ReadFile("/proc/swaps"); err == nil && strings.Count(string(text), "\n") <= 1 {
		return true, "the machine has none"
	}
	return false, "swap is not accounted: a sandbox may use more of it than its limit (boot with swapaccount=1, or turn swap off)"
}

// kernelRelease shows the patch level: a wall is as good as the kernel below it.
func kernelRelease() (string, bool) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err.Error(), false
	}
	return unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Version[:]) + " " + runtime.GOARCH, true
}

// landlockScopes is the ABI that can scope signals and abstract sockets (Linux 6.12).
const landlockScopes = 6

func landlockABI() (int, string) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case errno != 0:
		return 0, "none: the kernel does not have it, or not enabled (boot with landlock among lsm=)"
	case version < landlockScopes:
		return int(version), fmt.Sprintf("ABI %d cannot scope signals and abstract sockets (Linux 6.12)", version)
	}
	return int(version), fmt.Sprintf("ABI %d; no signal and no connection to an abstract socket leaves a sandbox", version)
}

// smtState tells whether another tenant's thread may run on the same core at the same time.
func smtState() (bool, string) {
	text, err := os.ReadFile("/sys/devices/system/cpu/smt/active")
	switch {
	case err != nil:
		return false, "not known"
	case strings.TrimSpace(string(text)) == "0":
		return true, "off: no two tenants share a core at the same time"
	}
	return false, "on: two tenants may share a core at the same time, and its caches (turn it off with nosmt, where side channels matter)"
}

func vulnerabilities() (bool, string) {
	files, _ := filepath.Glob("/sys/devices/system/cpu/vulnerabilities/*")
	if len(files) == 0 {
		return false, "not known"
	}
	var open []string
	for _, f := range files {
		if text, err := os.ReadFile(f); err != nil || strings.HasPrefix(string(text), "Vulnerable") {
			open = append(open, filepath.Base(f))
		}
	}
	if len(open) > 0 {
		return false, "not mitigated: " + strings.Join(open, ", ")
	}
	return true, fmt.Sprintf("all %d that the kernel knows are mitigated or do not apply", len(files))
}
