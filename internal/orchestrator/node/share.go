package node

import (
	"path/filepath"
	"sync"
)

// share is the directory that all tasks of an allocation write to, where they have file systems of their own. It is a file system in memory, so that it is
// bounded, and what is in it counts as the memory of the task that wrote it. As the tasks' own files it goes when the last of them has ended.
type share struct {
	mu sync.Mutex
}

// leastShared is the least size in MB: an ephemeral disk of 0 asks for none in particular.
const leastShared = 16

// at is where the directory lies below an allocation's, as clients see it.
func (*share) at(files string) string { return filepath.Join(files, "alloc", "data") }

// open makes the directory, unless it is there: made for another task, or by an earlier process of the agent.
func (s *share) open(files string, sizeMB int) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at(files), mountShared(s.at(files), int64(max(sizeMB, leastShared))<<20)
}

// close takes it away with all that is in it. That there is none is no error.
func (s *share) close(files string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return unmountShared(s.at(files))
}
