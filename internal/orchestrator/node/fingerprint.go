package node

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// assumedMHz stands in for the clock of a processor that does not tell.
const assumedMHz = 1000

// node is the description last made. It is never changed.
func (a *Agent) node() *model.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.described
}

// describe asks the drivers and whoever else has a say, and reports whether anything has changed.
func (a *Agent) describe(ctx context.Context) bool {
	old := a.node()
	n := &model.Node{ID: a.identity.ID, SecretID: a.identity.Secret, Name: a.cfg.Name, Datacenter: a.cfg.Datacenter,
		NodePool: a.cfg.NodePool, NodeClass: a.cfg.NodeClass, HTTPAddr: a.cfg.HTTPAddr, TLSEnabled: a.cfg.TLS, Meta: a.currentMeta(), HostVolumes: a.cfg.Volumes,
		Status: model.NodeReady, SchedulingEligibility: model.NodeEligible, Reserved: a.cfg.Reserved,
		Attributes: maps.Clone(a.machine.attributes), Resources: a.machine.resources, Drivers: map[string]*model.DriverInfo{}}
	if n.Name == "" {
		n.Name = n.Attributes["unique.hostname"]
	}
	n.Attributes["rockpool.version"] = a.cfg.Version
	if a.cfg.Resources != nil {
		a.cfg.Resources(&n.Resources)
	}
	if a.cfg.Devices != nil {
		n.Resources.Devices = a.cfg.Devices.Devices()
		maps.Copy(n.Attributes, a.cfg.Devices.Attributes())
	}
	for _, d := range a.cfg.Drivers {
		n.Drivers[d.Name()] = a.describeDriver(ctx, d, old)
		maps.Copy(n.Attributes, n.Drivers[d.Name()].Attributes)
		if info := n.Drivers[d.Name()]; info.Detected && info.Healthy {
			n.Attributes["driver."+d.Name()] = "1"
		}
	}
	if a.cfg.Networks != nil {
		maps.Copy(n.Attributes, a.cfg.Networks.Fingerprint())
	}
	if a.cfg.Attributes != nil {
		maps.Copy(n.Attributes, a.cfg.Attributes())
	}
	if old != nil && reflect.DeepEqual(n, old) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.described = n
	return true
}

// describeDriver asks a driver. Its update time changes only when it says something new.
func (a *Agent) describeDriver(ctx context.Context, d driver.Driver, old *model.Node) *model.DriverInfo {
	info := d.Fingerprint(ctx)
	if old != nil {
		if was := old.Drivers[d.Name()]; was != nil {
			if info.UpdateTime = was.UpdateTime; reflect.DeepEqual(&info, was) {
				return was
			}
		}
	}
	info.UpdateTime = time.Now().UnixNano()
	return &info
}

// machine is what stays the same while the agent runs.
type machine struct {
	attributes map[string]string
	resources  model.NodeResources
}

// look describes the machine. What cannot be found out is left out or assumed, never an error.
func look(dataDir string) machine {
	cores := runtime.NumCPU()
	name, mhz := processor()
	compute, mem := cores*mhz, memoryBytes()
	total, free := space(dataDir)
	attr := map[string]string{
		"unique.storage.bytesfree":  strconv.FormatInt(free, 10),
		"cpu.arch":                  runtime.GOARCH,
		"cpu.numcores":              strconv.Itoa(cores),
		"cpu.frequency":             strconv.Itoa(mhz),
		"cpu.totalcompute":          strconv.Itoa(compute),
		"memory.totalbytes":         strconv.FormatInt(mem, 10),
		"unique.storage.volume":     dataDir,
		"unique.storage.bytestotal": strconv.FormatInt(total, 10),
		"kernel.arch":               runtime.GOARCH,
		"kernel.name":               runtime.GOOS,
		"os.name":                   runtime.GOOS,
	}
	if name != "" {
		attr["cpu.modelname"] = name
	}
	if host, err := os.Hostname(); err == nil {
		attr["unique.hostname"] = host
	}
	maps.Copy(attr, kernel())
	maps.Copy(attr, osRelease())
	maps.Copy(attr, controlGroups())
	maps.Copy(attr, address())
	return machine{attr, model.NodeResources{CPU: compute, Cores: cores, MemoryMB: int(mem >> 20), DiskMB: int(free >> 20)}}
}

// processor is the name and clock of the first processor.
func processor() (name string, mhz int) {
	mhz = assumedMHz
	b, _ := os.ReadFile("/proc/cpuinfo")
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		k, v, _ := strings.Cut(lines.Text(), ":")
		switch v = strings.TrimSpace(v); strings.TrimSpace(k) {
		case "model name":
			name = v
		case "cpu MHz":
			if f, err := strconv.ParseFloat(v, 64); err == nil && f >= 1 {
				return name, int(f)
			}
		}
	}
	b, _ = os.ReadFile("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency") // kHz
	if khz, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && khz >= 1000 {
		mhz = khz / 1000
	}
	return name, mhz
}

// memoryBytes is the memory of the machine, or the limit of the agent's own control group if that is smaller.
func memoryBytes() int64 {
	var total int64
	b, _ := os.ReadFile("/proc/meminfo")
	var kib int64
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err == nil {
		total = kib << 10
	}
	for _, limit := range memoryLimits() {
		if limit > 0 && (total == 0 || limit < total) {
			total = limit
		}
	}
	return total
}

// memoryLimits are those of the agent's control group and the groups above it, in either version.
func memoryLimits() (limits []int64) {
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		root, file := "/sys/fs/cgroup", "memory.max"
		if parts[0] != "0" {
			if parts[1] != "memory" {
				continue
			}
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		for path := parts[2]; ; path = path[:strings.LastIndexByte(path, '/')] {
			b, _ := os.ReadFile(root + path + "/" + file)
			if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
				limits = append(limits, n)
			}
			if !strings.Contains(path, "/") {
				break
			}
		}
	}
	return limits
}

// controlGroups is the version of the kernel's control groups and the controllers that can be used.
func controlGroups() map[string]string {
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return map[string]string{"os.cgroups.version": "2", "os.cgroups.controllers": strings.Join(strings.Fields(string(b)), ",")}
	}
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return nil
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // name, hierarchy, groups, enabled
		if len(f) == 4 && !strings.HasPrefix(f[0], "#") && f[1] != "0" && f[3] == "1" {
			names = append(names, f[0])
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return map[string]string{"os.cgroups.version": "1", "os.cgroups.controllers": strings.Join(names, ",")}
}

// address is that of the machine: of the interface that leads out, else the first that is up and no loopback.
func address() map[string]string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	// Nothing is sent: a route is looked up.
	var out net.IP
	if c, err := net.Dial("udp", "192.0.2.1:9"); err == nil {
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			out = a.IP
		}
		_ = c.Close()
	}
	first := map[string]string{}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok || n.IP.IsLinkLocalUnicast() {
				continue
			}
			found := map[string]string{"unique.network.ip-address": n.IP.String(), "unique.network.interface": i.Name}
			if out != nil && n.IP.Equal(out) {
				return found
			}
			if len(first) == 0 && n.IP.To4() != nil {
				first = found
			}
		}
	}
	return first
}

func osRelease() map[string]string {
	attr := map[string]string{}
	b, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch v = strings.Trim(v, `"'`); k {
		case "ID":
			attr["os.name"] = v
		case "VERSION_ID":
			attr["os.version"] = v
		}
	}
	return attr
}
