package docker

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/orchestrator/model"
)

// Labels of this node's containers.
const (
	labelPrefix = "rockpool."
	labelNode   = labelPrefix + "node"
	labelTask   = labelPrefix + "task"
	labelAlloc  = labelPrefix + "alloc"
)

const (
	// oomScore has the kernel end what is inside before anything of the node.
	oomScore = 500
	// leastDisk is the least writable layer in bytes: jobs ask for far less than their programs need, as Docker bounds none.
	leastDisk = 512 << 20
	// cpuPeriod is Docker's default, in microseconds.
	cpuPeriod = 100000
)

// container says what the engine is to make of a task. Whatever the job says, it gets no capability, no new privileges, no more memory with swap than
// without, a bounded number of processes, and an init that reaps what nobody else does.
func (d *Driver) container(c *config, cfg driver.TaskConfig, e *engine) (client.ContainerCreateOptions, error) {
	mode, err := modeOf(c, cfg.Networks)
	if err != nil {
		return client.ContainerCreateOptions{}, err
	}
	if mode != "none" && !slices.Contains(d.cfg.Networks, mode) {
		return client.ContainerCreateOptions{}, fault.New(fault.Invalid, "driver %s: the engine's network %q keeps programs from neither this machine nor private addresses: "+
			"leave the network out, or name it in orchestrator.dockernetworks once a firewall does", Name, mode)
	}
	reserved := int64(cmp.Or(cfg.Resources.MemoryMB, cfg.Task.Resources.MemoryMB))
	memory := cmp.Or(c.memoryHardMB, max(reserved, int64(cfg.Resources.MemoryMaxMB), int64(cfg.Task.Resources.MemoryMaxMB)))
	cpu := int64(cmp.Or(cfg.Resources.CPU, cfg.Task.Resources.CPU))
	labels := maps.Clone(c.labels)
	labels[labelNode], labels[labelTask], labels[labelAlloc] = d.cfg.Node, cfg.ID, cfg.AllocID
	env := maps.Clone(cfg.Env)
	if env == nil {
		env = map[string]string{}
	}
	key, visible := cdi.Visible(cfg.Devices)
	env[key] = visible
	init := new(bool)
	if *init = true; d.hasNoInit() {
		init = nil
	}
	inside := &container.Config{
		Image: c.image, Entrypoint: c.entrypoint, Cmd: command(c), WorkingDir: c.workDir, User: cfg.Task.User, Env: environ(env),
		Hostname: c.hostname, Labels: labels, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	host := &container.HostConfig{
		NetworkMode: container.NetworkMode(mode), Runtime: c.runtime, Init: init, ReadonlyRootfs: c.readOnly, ShmSize: c.shmBytes,
		CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"}, OomScoreAdj: oomScore, IpcMode: "private",
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:     container.LogConfig{Type: "none"},
		Resources: container.Resources{
			Memory: memory << 20, MemorySwap: memory << 20, PidsLimit: &c.pids, CPUShares: max(cpu, 2), Ulimits: c.ulimits,
		},
	}
	host.Mounts = mounts(cfg.Mounts)
	if len(cfg.Devices) > 0 { // the engine reads the specifications itself
		host.DeviceRequests = []container.DeviceRequest{{Driver: "cdi", DeviceIDs: cfg.Devices}}
	}
	if reserved < memory {
		host.MemoryReservation = reserved << 20
	}
	if c.cpuHardLimit {
		host.CPUPeriod, host.CPUQuota = cpuPeriod, max(cpu*cpuPeriod/int64(d.cfg.CoreMHz), 1000)
	}
	if e.boundsDisk {
		host.StorageOpt = map[string]string{"size": strconv.FormatInt(max(int64(cfg.DiskMB)<<20, leastDisk), 10)}
	}
	if mode != "none" {
		names(host, cfg)
		if inside.ExposedPorts, host.PortBindings, err = publish(c, cfg); err != nil {
			return client.ContainerCreateOptions{}, err
		}
	} else if len(c.ports) > 0 {
		return client.ContainerCreateOptions{}, table.Wrong("ports", "a task without a network has none: ask for network mode \"bridge\"")
	}
	return client.ContainerCreateOptions{Config: inside, HostConfig: host, Name: containerName(cfg.ID)}, nil
}

func (d *Driver) hasNoInit() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.noInit
}

func command(c *config) []string {
	if c.command == "" {
		return c.args
	}
	return append([]string{c.command}, c.args...)
}

func environ(env map[string]string) []string {
	all := make([]string, 0, len(env))
	for k, v := range env {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	return all
}

// modeOf is what the task says itself, or what its group asks for; without either there is no network.
func modeOf(c *config, group []model.Network) (string, error) {
	if c.networkMode != "" {
		return c.networkMode, nil
	}
	for _, n := range group {
		switch n.Mode {
		case "", "none":
		case "bridge":
			return "bridge", nil
		default:
			return "", fault.New(fault.Invalid, "driver %s: network mode %q of the group is not offered: use \"none\" or \"bridge\", or the task's own network_mode", Name, n.Mode)
		}
	}
	return "none", nil
}

// names passes on the name service that the group asks for.
func names(host *container.HostConfig, cfg driver.TaskConfig) {
	for _, n := range cfg.Networks {
		if n.DNS == nil {
			continue
		}
		for _, s := range n.DNS.Servers {
			if a, err := netip.ParseAddr(s); err == nil {
				host.DNS = append(host.DNS, a)
			}
		}
		host.DNSSearch, host.DNSOptions = append(host.DNSSearch, n.DNS.Searches...), append(host.DNSOptions, n.DNS.Options...)
	}
}

// publish maps the allocation's ports: those that the task names, or all. Which port of the node a label has got is
// known from the environment that describes the placement.
func publish(c *config, cfg driver.TaskConfig) (network.PortSet, network.PortMap, error) {
	set, bindings := network.PortSet{}, network.PortMap{}
	wanted := c.ports
	if wanted == nil {
		for _, n := range cfg.Networks {
			for _, p := range slices.Concat(n.ReservedPorts, n.DynamicPorts) {
				wanted = append(wanted, p.Label)
			}
		}
	}
	for _, label := range wanted {
		key := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, label)
		outside, inside := cfg.Env["NOMAD_HOST_PORT_"+key], cfg.Env["NOMAD_PORT_"+key]
		to, err := strconv.ParseUint(cmp.Or(inside, outside), 10, 16)
		if err != nil || outside == "" {
			return nil, nil, table.Wrong("ports", "the group has no port %q", label)
		}
		var address netip.Addr
		if ip := cfg.Env["NOMAD_IP_"+key]; ip != "" {
			if address, err = netip.ParseAddr(ip); err != nil {
				return nil, nil, fmt.Errorf("address of port %q: %w", label, err)
			}
		}
		for _, protocol := range []network.IPProtocol{network.TCP, network.UDP} {
			p, _ := network.PortFrom(uint16(to), protocol)
			set[p] = struct{}{}
			bindings[p] = append(bindings[p], network.PortBinding{HostIP: address, HostPort: outside})
		}
	}
	return set, bindings, nil
}
