//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// group is one control group, as a directory at the same place of every hierarchy. A sandbox has one; below it is one for each execution, named by a
// prefix and its id. Process 1 is in the sandbox's own on v1, and below it in "init" on v2, where a group with others in it may hold no process.
type group struct {
	hierarchies []hierarchy
	rel         string
	inner       string // a directory more, on v2 only
	leaf        bool   // nothing is below it
}

const groupOfInit = "init"

const (
	groupOfExecution = "x-" // has an execution, or an interpreter that waits and then the execution that took it, or is free for the next one
	groupOfService   = "b-" // outlives its execution
	groupOfKept      = "k-" // outlives the node's process, and has its figures for the next one: it goes with the sandbox
)

func (g group) path(h hierarchy) string {
	if h.unified {
		return filepath.Join(h.base, g.rel, g.inner)
	}
	return filepath.Join(h.base, g.rel)
}

func (g group) child(name string) group {
	return group{hierarchies: g.hierarchies, rel: filepath.Join(g.rel, name), leaf: true}
}

// init is the group of process 1 in that of its sandbox.
func (g group) init() group {
	return group{hierarchies: g.hierarchies, rel: g.rel, inner: groupOfInit}
}

// makeInit makes what init has of its own.
func (g group) makeInit() error {
	own := g.init()
	own.hierarchies = slices.DeleteFunc(slices.Clone(g.hierarchies), func(h hierarchy) bool { return !h.unified })
	return own.make()
}

// file finds a control file in the hierarchy that has the controller.
func (g group) file(controller, v1, v2 string) (string, bool) {
	for _, h := range g.hierarchies {
		if !h.has(controller) {
			continue
		}
		name := v1
		if h.unified {
			name = v2
		}
		return filepath.Join(g.path(h), name), name != ""
	}
	return "", false
}

// make creates the group everywhere, or nowhere.
func (g group) make() error {
	for i, h := range g.hierarchies {
		if err := os.Mkdir(g.path(h), 0o755); err != nil {
			for _, made := range g.hierarchies[:i] {
				_ = unix.Rmdir(g.path(made))
			}
			return fmt.Errorf("make control group: %w", err)
		}
	}
	return nil
}

// limit bounds the group and everything below it.
func (g group) limit(l Limits) error {
	for _, h := range g.hierarchies {
		if h.unified {
			// Block devices are bounded for the sandbox as a whole.
			below := slices.DeleteFunc(slices.Clone(h.controllers), func(c string) bool { return c == "io" })
			if err := enableControllers(g.path(h), below); err != nil {
				return fmt.Errorf("delegate controllers: %w", err)
			}
		}
	}
	set := func(controller, v1, value1, v2, value2 string) error {
		path, ok := g.file(controller, v1, v2)
		if !ok {
			return nil
		}
		value := value1
		if filepath.Base(path) == v2 {
			value = value2
		}
		if err := writeFile(path, value); err != nil {
			return fmt.Errorf("set %s: %w", filepath.Base(path), err)
		}
		return nil
	}
	memory := strconv.FormatInt(l.MemoryBytes, 10)
	pids := strconv.FormatInt(l.PIDs+1, 10) // and the supervisor
	shares := max(2, min(l.CPUShares, 262144))
	weight := 1 + (shares-2)*9999/262142 // the kernel's own mapping of the two scales
	errs := []error{
		set("memory", "memory.limit_in_bytes", memory, "memory.max", memory),
		set("pids", "pids.max", pids, "pids.max", pids),
		set("cpu", "cpu.shares", strconv.FormatInt(shares, 10), "cpu.weight", strconv.FormatInt(weight, 10)),
	}
	if l.CPUQuota > 0 {
		quota := strconv.FormatInt(max(1000, int64(math.Round(l.CPUQuota*100000))), 10)
		errs = append(errs, set("cpu", "cpu.cfs_quota_us", quota, "cpu.max", quota+" 100000"))
	}
	// Swap is not everywhere: without CONFIG_SWAP or with swapaccount=0 the file is missing.
	if err := set("memory", "memory.memsw.limit_in_bytes", memory, "memory.swap.max", "0"); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// restQuota is what a group gets of one processor while it has nothing to do but to wait: a hundredth, the least that the kernel takes.
const restQuota = "1000"

// rest bounds what a group without a program uses of the processor, or lifts that bound.
func (g group) rest(on bool) error {
	path, ok := g.file("cpu", "cpu.cfs_quota_us", "cpu.max")
	if !ok {
		return nil
	}
	value := restQuota
	switch unified := filepath.Base(path) == "cpu.max"; {
	case on && unified:
		value += " 100000"
	case !on && unified:
		value = "max 100000"
	case !on:
		value = "-1"
	}
	err := writeFile(path, value)
	if errors.Is(err, fs.ErrNotExist) { // a kernel without bounds, or a group that is gone
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", filepath.Base(path), err)
	}
	return nil
}

// nameOfBounded is no id of a sandbox.
const nameOfBounded = ".bounded"

// keepBounds makes a group with a bound and nothing in it. The kernel patches its own scheduler, and interrupts every processor for that, when the first
// group of the machine is bounded and when the bound of the last is lifted (the static key of cfs_bandwidth_used in kernel/sched/fair.c): without this
// one, each time that one who rests begins to work. Emulated processors were seen to hang in it. drop removes the group.
func (g group) keepBounds() (drop func() error, err error) {
	kept := g.child(nameOfBounded)
	path, ok := kept.file("cpu", "cpu.cfs_quota_us", "cpu.max")
	if !ok {
		return func() error { return nil }, nil
	}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	if err := kept.rest(true); err != nil {
		return nil, errors.Join(err, unix.Rmdir(dir))
	}
	return func() error { return ignoreGone(unix.Rmdir(dir)) }, nil
}

// join opens what a process writes "0" to in order to enter the group. "tasks" moves a single thread, for which v1
// needs no lock over all processes of the machine.
func (g group) join() ([]*os.File, error) {
	var files []*os.File
	for _, h := range g.hierarchies {
		name := "tasks"
		if h.unified {
			name = "cgroup.procs"
		}
		fd, err := unix.Open(filepath.Join(g.path(h), name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("open control group: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// populated says whether a process lives in the group or below it.
func (g group) populated() (bool, error) {
	for _, h := range g.hierarchies {
		if !h.unified {
			continue
		}
		v, err := keyed(filepath.Join(g.path(h), "cgroup.events"), "populated")
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return v != 0, err
	}
	pids, err := g.pids()
	return len(pids) > 0, err
}

// pids lists the processes in the group and below it, by the first hierarchy.
func (g group) pids() ([]int, error) {
	if len(g.hierarchies) == 0 {
		return nil, nil
	}
	top := g.path(g.hierarchies[0])
	if g.leaf {
		return pidsIn(top)
	}
	var pids []int
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreGone(err)
		}
		some, err := pidsIn(path)
		pids = append(pids, some...)
		return err
	})
	return pids, err
}

func pidsIn(path string) (pids []int, err error) {
	text, err := readControl(filepath.Join(path, "cgroup.procs"))
	for field := range strings.FieldsSeq(text) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, ignoreGone(err)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// kill ends every process of the group and waits until none is left. found says whether there was any; after that v1 starts none in it again.
func (g group) kill(ctx context.Context) (found bool, err error) {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		alive, err := g.populated()
		if !alive || err != nil {
			return found, err
		}
		found = true
		if err := g.killOnce(); err != nil {
			return found, err
		}
		select {
		case <-ctx.Done():
			return found, fmt.Errorf("control group %s still has processes: %w", g.rel, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// clear kills what is in the group and removes it.
func (g group) clear(ctx context.Context) error {
	if _, err := g.kill(ctx); err != nil {
		return err
	}
	return g.remove(ctx)
}

// killOnce uses cgroup.kill, which no fork can outrun (Linux 5.14). Where there is only v1, forks are stopped first by a
// limit of no processes; then what is there is signalled, each by a descriptor that was verified, as its number may
// have passed to a process of the host.
func (g group) killOnce() error {
	for _, h := range g.hierarchies {
		if h.unified {
			err := writeFile(filepath.Join(g.path(h), "cgroup.kill"), "1")
			if !errors.Is(err, fs.ErrNotExist) {
				return ignoreGone(err) // it may be removed between the opening of the file and the writing
			}
		}
	}
	if path, ok := g.file("pids", "pids.max", "pids.max"); ok {
		if err := writeFile(path, "0"); err != nil {
			return ignoreGone(err)
		}
	}
	pids, err := g.pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // ended meanwhile
		}
		if g.holds(pid) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
	return nil
}

func (g group) holds(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		path := strings.TrimSpace(line)
		if strings.HasSuffix(path, "/"+g.rel) || strings.Contains(path, "/"+g.rel+"/") {
			return true
		}
	}
	return false
}

// remove deletes the group and what is below it, which must have no processes left; a group stays busy for an instant
// after its last process ended.
func (g group) remove(ctx context.Context) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var busy error
		for _, h := range g.hierarchies {
			if err := removeTree(g.path(h)); err != nil {
				busy = err
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group: %w", busy)
		case <-time.After(wait):
		}
	}
}

func removeTree(path string) error {
	err := unix.Rmdir(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err = unix.Rmdir(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// children lists the groups directly below, in any hierarchy.
func (g group) children() []string {
	seen := make(map[string]bool)
	var names []string
	for _, h := range g.hierarchies {
		entries, _ := os.ReadDir(g.path(h))
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// boundTogether keeps all sandboxes together below the machine's memory. Their own limits may sum to more than there is; when they are used to
// the full, the kernel then ends a program inside and nothing of the node.
func (g group) boundTogether() error {
	path, ok := g.file("memory", "memory.limit_in_bytes", "memory.max")
	if !ok {
		return nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("read the size of the memory: %w", err)
	}
	total := uint64(info.Totalram) * uint64(info.Unit)
	spared := max(total/20, min(256<<20, total/4)) // for the node itself
	err := writeFile(path, strconv.FormatUint(total-spared, 10))
	if errors.Is(err, unix.EBUSY) { // sandboxes of before use more; they keep what they have
		return nil
	}
	if err != nil {
		return fmt.Errorf("bound the memory of all sandboxes: %w", err)
	}
	return nil
}
