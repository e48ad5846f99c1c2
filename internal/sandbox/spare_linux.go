//go:build linux && cgo

package sandbox

import (
	"fmt"
	"path/filepath"
	"slices"
)

// spareMost is how much memory may be left charged to a group that another execution gets: what each processor has been granted in advance, 256 KiB, what the kernel frees
// a moment later, caches and small files. More was written by the program, and stays out of the next one's peak by leaving with its group.
const spareMost = 1536 << 10

// spare is a control group that nothing runs in any more, with what its executions have used. The next execution takes it: to make and remove one for each costs more
// than everything else the node does for a short program, most of it in the memory controller.
type spare struct {
	group  group
	before counters
}

// groupForNext gives an execution the spare group, or one that is to be made. A spare one whose peak cannot be begun anew stays what it is: nothing else would remove it.
func (s *Sandbox) groupForNext() (taken spare, isMade bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare.group.rel == "" || !s.spare.group.forgetPeak() {
		return spare{group: s.nextGroup()}, false
	}
	taken, s.spare = s.spare, spare{}
	return taken, true
}

// forgetPeak begins the highest use of memory anew, which is done late: most of what was left is gone by then.
func (g group) forgetPeak() bool {
	path, ok := g.file("memory", fileOfPeak, "")
	return !ok || writeFile(path, "0") == nil
}

// putSpare keeps the group of an execution that has ended by itself, if it is as good as a new one. Otherwise, as where the kernel cannot begin a peak anew (v2), it is the
// caller's to remove.
func (s *Sandbox) putSpare(g group, c counters) bool {
	if c.unread || c.oomKills > 0 || !g.vacant() {
		return false
	}
	if path, ok := g.file("memory", "memory.usage_in_bytes", "memory.current"); ok {
		left, err := number(path)
		if _, resets := g.file("memory", fileOfPeak, ""); err != nil || left > spareMost || !resets {
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare.group.rel != "" || s.removed || s.detached {
		return false
	}
	s.spare = spare{g, c}
	return true
}

// vacant says whether the kernel counts no process in the group, not even one that it would let somebody wait for. v1 lists processes one by one, and a program that forks
// and ends all the while could be missed there; a group that is removed is looked at by the kernel itself.
func (g group) vacant() bool {
	path, ok := g.file("pids", "pids.current", "pids.current")
	if !ok {
		return true
	}
	n, err := number(path)
	return err == nil && n == 0
}

// nextGroup names a group as no other of this sandbox was named: what holds on to one that is gone finds nothing. It is called with mu held.
func (s *Sandbox) nextGroup() group {
	s.grouped++
	return s.group.child(fmt.Sprintf("%s%d", groupOfExecution, s.grouped))
}

// crowded says whether the sandbox has another group than that of process 1 and the spare one. It is called with mu held.
func (s *Sandbox) crowded() bool {
	return slices.ContainsFunc(s.group.children(), func(name string) bool { return name != groupOfInit && name != filepath.Base(s.spare.group.rel) })
}

// since is what was used after before. What was left of memory then is part of the peak.
func (c counters) since(before counters) counters {
	c.cpu = max(0, c.cpu-before.cpu) // it may be unread
	c.oomKills = max(0, c.oomKills-before.oomKills)
	return c
}
