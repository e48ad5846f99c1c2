package execution

import (
	"regexp"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
)

// Request is an execution that somebody asked for.
type Request struct {
	Command    string
	Privileged bool
	TimeLimit  time.Duration // 0 = none, negative = over at once
	Env        map[string]string
	TTY        bool
	Size       Size
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Validate refuses names that no environment can hold.
func (r Request) Validate() error {
	for name := range r.Env {
		if !envName.MatchString(name) {
			return fault.New(fault.Invalid, "the name of an environment variable must match [A-Za-z_][A-Za-z0-9_]*: %q", name)
		}
	}
	return nil
}

// Store keeps requests until they are taken. The zero value is ready for use.
type Store struct {
	mu      sync.Mutex
	waiting map[string]Request
}

// Put keeps a request under a fresh id.
func (s *Store) Put(r Request) string {
	id := ident.New()
	s.Restore(id, r)
	return id
}

// Restore puts a request back that was taken but not begun.
func (s *Store) Restore(id string, r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = map[string]Request{}
	}
	s.waiting[id] = r
}

// Take consumes a request: only the first caller gets it.
func (s *Store) Take(id string) (Request, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.waiting[id]
	delete(s.waiting, id)
	return r, ok
}
