package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// group is a control group that the engine made for a container, or one below it: the same place in each hierarchy that is of use. No controller is
// enabled for what is below, as the engine keeps putting processes into the container's own group.
type group struct {
	v2                    bool
	procs, memory, cpuUse string // directories; in v2 all the same
}

// groupOf finds a process's group, if it is that of the container with the id.
func groupOf(pid int, id string) (group, error) {
	text, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return group{}, fmt.Errorf("%w: %w", errElsewhere, err)
	}
	var g group
	var unified string
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 {
			continue
		}
		place := strings.TrimSuffix(parts[2], "/"+mainGroup)
		if !strings.Contains(filepath.Base(place), id) {
			continue
		}
		if parts[1] == "" {
			unified = place
		}
		for _, of := range []struct {
			controller string
			dir        *string
		}{{"pids", &g.procs}, {"memory", &g.memory}, {"cpuacct", &g.cpuUse}} {
			if slices.Contains(strings.Split(parts[1], ","), of.controller) {
				*of.dir = filepath.Join(cgroupRoot, of.controller, place)
			}
		}
	}
	if g.procs == "" && unified != "" {
		dir := filepath.Join(cgroupRoot, unified)
		g = group{v2: true, procs: dir, memory: dir, cpuUse: dir}
	}
	if g.procs == "" {
		return group{}, fmt.Errorf("%w: process %d is in no control group of the container", errElsewhere, pid)
	}
	if _, err := os.Stat(filepath.Join(g.procs, "cgroup.procs")); err != nil {
		return group{}, fmt.Errorf("%w: %w", errElsewhere, err)
	}
	return g, nil
}

// dirs are the group's directories, each once.
func (g group) dirs() []string {
	all := slices.DeleteFunc([]string{g.procs, g.memory, g.cpuUse}, func(d string) bool { return d == "" })
	slices.Sort(all)
	return slices.Compact(all)
}

func (g group) child(name string) group {
	below := func(dir string) string {
		if dir == "" {
			return ""
		}
		return filepath.Join(dir, name)
	}
	return group{g.v2, below(g.procs), below(g.memory), below(g.cpuUse)}
}

func (g group) children() (names []string) {
	entries, _ := os.ReadDir(g.procs)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func (g group) make() (err error) {
	for _, dir := range g.dirs() {
		if made := os.Mkdir(dir, 0o755); made != nil {
			err = fmt.Errorf("make control group: %w", made)
		}
	}
	return err
}

// members are the processes directly in one of the group's directories.
func members(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return strings.Fields(string(text)), err
}

// moveTimeout bounds the race with a program that forks while it is moved. The children of what was moved are born in the right group, so each pass finds
// fewer; a process that is just ending cannot be moved, and is listed for a moment longer.
const moveTimeout = 5 * time.Second

// moveTo moves every process to another group.
func (g group) moveTo(to group) error {
	from, into := []string{g.procs, g.memory, g.cpuUse}, []string{to.procs, to.memory, to.cpuUse}
	if g.v2 {
		from, into = from[:1], into[:1]
	}
	begun := time.Now()
	for i, dir := range from {
		if dir == "" {
			continue
		}
		for pause := 10 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
			pids, err := members(dir)
			if err != nil || len(pids) == 0 {
				break
			}
			if time.Since(begun) > moveTimeout {
				return errors.New("its processes cannot be held: they keep forking")
			}
			for _, pid := range pids {
				if err := enterGroup(into[i], pid); err != nil {
					return err
				}
			}
			time.Sleep(pause)
		}
	}
	return nil
}

// take moves one process into the group.
func (g group) take(pid int) error {
	for _, dir := range g.dirs() {
		if err := enterGroup(dir, strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// enterGroup moves a process; one that has ended need not move.
func enterGroup(dir, pid string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("move process %s: %w", pid, err)
	}
	return nil
}

// kill ends every process of the group. Where there is cgroup.kill no fork can outrun it; in v1 forks are stopped first by a
// limit of no processes, and each process is signalled by a descriptor that was verified.
func (g group) kill(ctx context.Context) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		pids, err := members(g.procs)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := os.WriteFile(filepath.Join(g.procs, "cgroup.kill"), []byte("1"), 0); err != nil {
			_ = os.WriteFile(filepath.Join(g.procs, "pids.max"), []byte("0"), 0)
			for _, pid := range pids {
				g.killOne(pid)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("processes of an execution resist: %w", context.Cause(ctx))
		}
	}
}

func (g group) killOne(text string) {
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if pids, err := members(g.procs); err == nil && slices.Contains(pids, text) { // the descriptor is of a member, not of who got its number
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// end kills what is in the group, and removes it.
func (g group) end(ctx context.Context) error {
	if err := g.kill(ctx); err != nil {
		return err
	}
	g.remove()
	return nil
}

// remove removes the group if it is empty; what is left goes with the container's.
func (g group) remove() {
	for _, dir := range g.dirs() {
		for range 20 { // a group is busy for an instant after its last process has ended
			if err := unix.Rmdir(dir); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func (g group) cpuTime() time.Duration {
	if g.v2 {
		return time.Duration(max(keyed(filepath.Join(g.cpuUse, "cpu.stat"), "usage_usec"), 0)) * time.Microsecond
	}
	return time.Duration(max(number(g.cpuUse, "cpuacct.usage"), 0))
}

// peak is only counted in v1: in v2 no controller is enabled below the container's group.
func (g group) peak() int64 {
	if g.v2 {
		return 0
	}
	return max(number(g.memory, "memory.max_usage_in_bytes"), 0)
}

// oomKills counts the processes that the kernel has killed for memory, or is -1 where that is not counted.
func (g group) oomKills() int64 {
	if g.v2 {
		return keyed(filepath.Join(g.memory, "memory.events"), "oom_kill")
	}
	return keyed(filepath.Join(g.memory, "memory.oom_control"), "oom_kill")
}

func number(dir, name string) int64 {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func keyed(path, key string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				return n
			}
		}
	}
	return -1
}
