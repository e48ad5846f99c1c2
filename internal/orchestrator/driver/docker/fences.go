package docker

import (
	"context"
	"slices"
	"strings"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
)

// wall is the part of the containment table that containers stand behind.
const wall = "Docker Engine"

// Fences is the containment table of containers, as the engine tells it. Nothing was tried against it.
func (d *Driver) Fences() []driver.Fence {
	e, err := d.ask(context.Background())
	if err != nil {
		return []driver.Fence{{Wall: wall, Name: "docker.engine", Detail: fault.Public(err)}}
	}
	return e.fences()
}

func (e *engine) fences() []driver.Fence {
	var rows []driver.Fence
	add := func(name string, standing bool, yes, no string) {
		f := driver.Fence{Wall: wall, Name: "docker." + name, InForce: standing, Detail: no}
		if standing {
			f.Detail = yes
		}
		rows = append(rows, f)
	}
	has := func(option string) bool {
		return slices.ContainsFunc(e.SecurityOptions, func(s string) bool { return s == "name="+option || strings.HasPrefix(s, "name="+option+",") })
	}
	add("engine", true, "version "+e.ServerVersion+", default runtime "+e.DefaultRuntime, "")
	add("privilege", true, "capabilities and bounding set empty; no_new_privs", "")
	add("user", has("userns") || has("rootless"), "root inside is nobody outside",
		"root inside is root of the node without capabilities: give the engine userns-remap")
	add("seccomp", has("seccomp"), "the engine's profile", "the engine filters no system calls")
	add("memory", e.MemoryLimit, "bounded", "the engine cannot bound memory")
	add("swap", e.SwapLimit, "counted with memory", "the engine cannot bound swap: boot with swapaccount=1, or turn swap off")
	add("pids", e.PidsLimit, "bounded", "the engine cannot bound processes")
	add("cpu", e.CPUShares, "shares", "the engine cannot share out processors")
	add("disk", e.boundsDisk, "the writable layer is bounded", "the writable layer of a container is not bounded: overlay2 needs xfs with pquota")
	add("network", false, "", "a container with a network reaches the machine, private networks and metadata addresses, unless the chain DOCKER-USER forbids it")
	return rows
}
