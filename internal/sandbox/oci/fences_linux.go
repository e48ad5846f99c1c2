//go:build linux && cgo

package oci

import (
	"fmt"

	"rockpool/internal/sandbox"
)

// OwnKernel reports whether programs inside have a kernel of their own, and so no way to the node's devices.
func (r *Runtime) OwnKernel() bool { return r.kind.ownKernel }

// Fences is the containment table of this class.
func (r *Runtime) Fences() []sandbox.Fence {
	fences := []sandbox.Fence{
		{Name: "kernel", InForce: r.kind.ownKernel, Detail: r.kind.wall, Note: !r.kind.ownKernel},
		{Name: "namespaces", InForce: true, Detail: "pid, mount, ipc, uts, cgroup and network: one each for every sandbox"},
		{Name: "privilege", InForce: true, Detail: "capabilities and bounding set empty; no_new_privs"},
		{Name: "files.root", InForce: true, Detail: "overlay on read-only layers, nosuid, nodev; writable part on a bounded tmpfs"},
		{Name: "files.proc", InForce: true, Detail: "host details masked; /proc/sys read-only"},
		{Name: "files.sys", InForce: true, Detail: "absent or empty"},
		{Name: "rlimits", InForce: true, Detail: "CORE=0, NOFILE, FSIZE, MEMLOCK, MSGQUEUE, SIGPENDING, RTPRIO=0"},
	}
	add := func(name string, standing bool, yes, no string) {
		detail := yes
		if !standing {
			detail = no
		}
		fences = append(fences, sandbox.Fence{Name: name, InForce: standing, Detail: detail})
	}
	add("namespace.user", r.kind.userNS || r.kind.ownKernel, map[bool]string{
		true: fmt.Sprintf("65536 ids for each sandbox from %d", r.cfg.IDBase), false: "users inside are known to the kernel inside only",
	}[r.kind.userNS], "")
	add("seccomp", r.filter != nil || r.kind.ownKernel, map[bool]string{
		true: "allow list " + r.filterName, false: "system calls end in the kernel inside",
	}[r.filter != nil], "")
	add("files.idmap", r.kind.userNS && !r.noIDMap.Load(), "node files are mapped to the sandbox's ids", "the files of images keep their ids")
	groups := r.groups(groupName("any"))
	for _, c := range []string{"memory", "pids", "cpu"} {
		add("cgroup."+c, groups.Bounds(c), "below "+r.cfg.CgroupParent, "the controller is not mounted: "+c+" is not limited")
	}
	return fences
}
