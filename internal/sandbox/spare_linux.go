//go:build linux && cgo

package sandbox

import (
	"fmt"
	"path/filepath"
	"slices"
)

// spareMost is how much memory may be left charged to a group that another execution gets: caches of the kernel and small files. More belongs to what was written,
// and stays out of the next one's figures by leaving with its group.
const spareMost = 256 << 10

// spare is a control group that nothing runs in any more, with what its executions have used. The next execution takes it: to make and remove one for each costs more
// than everything else the node does for a short program, most of it in the memory controller.
type spare struct {
	group  group
	before counters
}

// groupForNext gives an execution the spare group, or one that is to be made.
func (s *Sandbox) groupForNext() (taken spare, isMade bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, s.spare = s.spare, spare{}
	if taken.group.rel != "" {
		return taken, true
	}
	return spare{group: s.nextGroup()}, false
}

// putSpare keeps the group of an execution that has ended by itself, if it is as good as a new one. Otherwise, as where the kernel cannot begin its highest use of memory anew
// (v2), it is the caller's to remove.
func (s *Sandbox) putSpare(g group, c counters) bool {
	if c.oomKills > 0 {
		return false
	}
	if path, ok := g.file("memory", "memory.usage_in_bytes", "memory.current"); ok {
		left, err := number(path)
		if err != nil || left > spareMost {
			return false
		}
		if path, ok = g.file("memory", "memory.max_usage_in_bytes", ""); !ok || writeFile(path, "0") != nil {
			return false
		}
		c.memory = left
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare.group.rel != "" || s.removed || s.detached {
		return false
	}
	s.spare = spare{g, c}
	return true
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

// since is what was used after before. What was left then is part of the peak.
func (c counters) since(before counters) counters {
	c.cpu -= before.cpu
	c.oomKills -= before.oomKills
	c.peakMemory = max(0, c.peakMemory-before.memory)
	return c
}
