//go:build linux && cgo

package oci

import (
	"path/filepath"
	"strconv"
	"strings"
)

// kind is what differs between runtimes that share one command line.
type kind struct {
	userNS           bool                 // takes a user namespace with the sandbox's own ids
	ownKernel        bool                 // system calls of a program reach a kernel of the sandbox and not the node's
	ownGroups        bool                 // control groups are made by the node, and the runtime is started in them
	oneCgroupVersion bool                 // refuses to run where two are mounted
	global           []string             // flags before the command
	alone            []string             // further ones for a sandbox without a network but loopback
	pass             func(n int) []string // flags of exec that let n descriptors from 3 on be inherited
	wall             string               // for the table of fences
}

func preserve(n int) []string { return []string{"--preserve-fds", strconv.Itoa(n)} }

// each passes the descriptors one by one.
func each(n int) []string {
	var flags []string
	for fd := 3; fd < 3+n; fd++ {
		flags = append(flags, "--pass-fd", strconv.Itoa(fd)+":"+strconv.Itoa(fd))
	}
	return flags
}

var kinds = map[string]kind{
	"runc": {userNS: true, pass: preserve, wall: "namespaces of the node's kernel"},
	"crun": {userNS: true, ownGroups: true, oneCgroupVersion: true, global: []string{"--cgroup-manager=disabled"}, pass: preserve, wall: "namespaces of the node's kernel"},
	// The root is written by the node too, so nothing of it may be kept in the sentry's caches or in an overlay of its own.
	"runsc": {ownKernel: true, ownGroups: true, pass: each, wall: "a kernel of its own in user space (gVisor)",
		global: []string{"--overlay2=none", "--file-access=shared", "--host-fifo=none", "--host-uds=none", "--ignore-cgroups"}, alone: []string{"--network=none"}},
	"kata": {ownKernel: true, pass: preserve, wall: "a virtual machine (Kata Containers)"},
}

// kindOf knows a runtime by its configured name or by that of its program; others are taken for a runc.
func kindOf(name, program string) kind {
	for _, n := range []string{name, filepath.Base(program)} {
		for known, k := range kinds {
			if n == known || strings.HasPrefix(n, known+"-") {
				return k
			}
		}
	}
	return kinds["runc"]
}
