//go:build linux && cgo

package nvidia

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"rockpool/internal/fault"
)

const (
	// stray is how much memory more than at rest, in bytes, an instance may use that no process holds: the driver's own use is not always the same to the byte.
	stray = 64 << 20
	// maxNamed bounds how many processes a sentence names.
	maxNamed = 4
)

// usage is what is on an instance.
type usage struct {
	processes []uint32 // those that compute
	listed    bool     // else the driver does not tell them, and says so
	used      uint64   // bytes of memory, without what the driver has for itself where it tells them apart
	told      bool     // else the device has no memory of its own that the driver tells of
}

// usage asks for what is on an instance. That the driver does not offer to tell something is no error; that it fails to is one.
func (l *library) usage(ctx context.Context, h nvml.Device) (u usage, err error) {
	infos, listed, err := ask(ctx, l, h.GetComputeRunningProcesses, "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2",
		"nvmlDeviceGetComputeRunningProcesses")
	if err != nil {
		return u, err
	}
	for _, p := range infos {
		u.processes = append(u.processes, p.Pid)
	}
	u.listed = listed
	if m, told, err := ask(ctx, l, h.GetMemoryInfo_v2, "nvmlDeviceGetMemoryInfo_v2"); told || err != nil {
		u.used, u.told = m.Used, told
		return u, err
	}
	m, told, err := ask(ctx, l, h.GetMemoryInfo, "nvmlDeviceGetMemoryInfo")
	u.used, u.told = m.Used, told
	return u, err
}

// ask calls a function that the driver need not offer.
func ask[T any](ctx context.Context, l *library, f func() (T, nvml.Return), names ...string) (v T, offered bool, err error) {
	v, err = call(ctx, l, names, l.timeout, f)
	if code := codeOf(err); code == nvml.ERROR_NOT_SUPPORTED || code == nvml.ERROR_FUNCTION_NOT_FOUND {
		return v, false, nil
	}
	return v, err == nil, err
}

// restful notes how much memory instances use while nothing computes on them. It is the least that was seen in the session: what a task leaves never counts as rest.
func (p *Plugin) restful(ctx context.Context, targets []target) {
	for _, t := range targets {
		if t.shared {
			continue
		}
		u, err := p.library.usage(ctx, t.own())
		if err != nil || !u.listed || len(u.processes) > 0 || !u.told {
			continue
		}
		p.mu.Lock()
		had, known := p.rest[t.sample.ID]
		if known && u.used < had || !known && !p.doubted[t.sample.ID] {
			p.rest[t.sample.ID] = u.used
		}
		p.mu.Unlock()
	}
}

// Residue looks at what is on an instance now. Of a whole GPU or of a MIG instance everything counts that computes there, and memory beyond what is used at rest. Beside others
// on one GPU nothing tells whose memory it is: there, processes count that have ended and are still listed.
func (p *Plugin) Residue(ctx context.Context, id string) (string, error) {
	p.mu.Lock()
	at := slices.IndexFunc(p.targets, func(t target) bool { return t.sample.ID == id })
	if at < 0 {
		defer p.mu.Unlock()
		if _, in := p.report.Instance(id); in == nil {
			return "", fault.New(fault.NotFound, "GPU %s is not there", id)
		}
		return "", fault.New(fault.Unavailable, "GPU %s does not answer", id)
	}
	t, rest := p.targets[at], p.rest[id]
	p.doubted[id] = true
	p.mu.Unlock()
	u, err := p.library.usage(ctx, t.own())
	if err != nil {
		return "", err
	}
	left := u.processes
	if t.shared {
		left = slices.DeleteFunc(slices.Clone(left), p.alive)
	}
	switch {
	case len(left) > 0:
		return processes(left), nil
	case t.shared && !u.listed:
		return "", fault.New(fault.Unsupported, "the driver does not list the processes of GPU %s, which several share", id)
	case !t.shared && u.told && u.used > rest+stray:
		return fmt.Sprintf("%d MiB of its memory are in use that no process holds", (u.used-rest)>>20), nil
	case !u.listed && !u.told:
		return "", fault.New(fault.Unsupported, "the driver tells neither the processes nor the memory of GPU %s", id)
	}
	p.mu.Lock()
	delete(p.doubted, id)
	p.mu.Unlock()
	return "", nil
}

// processes is the end of a sentence about them.
func processes(pids []uint32) string {
	slices.Sort(pids)
	var named []string
	for _, pid := range pids[:min(len(pids), maxNamed)] {
		named = append(named, strconv.FormatUint(uint64(pid), 10))
	}
	if len(pids) > maxNamed {
		named = append(named, "…")
	}
	return fmt.Sprintf("%s still on it: %s", numbered(len(pids), "process is", "processes are"), strings.Join(named, ", "))
}

// alive reports whether a process runs. One that is not to be found does not.
func (p *Plugin) alive(pid uint32) bool {
	stat, err := os.ReadFile(filepath.Join(p.cfg.Proc, strconv.FormatUint(uint64(pid), 10), "stat"))
	if err != nil {
		return false
	}
	after := bytes.LastIndexByte(stat, ')') + 2 // the name before may have anything in it
	return after > 1 && after < len(stat) && stat[after] != 'Z' && stat[after] != 'X'
}

// own is what the figures of an instance alone are asked of.
func (t target) own() nvml.Device {
	if t.part != nil {
		return t.part
	}
	return t.gpu
}
