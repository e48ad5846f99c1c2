package execution

import (
	"cmp"
	"maps"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/timeline"
)

// Request is an execution that somebody asked for.
type Request struct {
	Command    string
	Privileged bool
	TimeLimit  time.Duration // 0 = none, negative = over at once
	Env        map[string]string
	TTY        bool
	Size       Size
	Keep       Keep
	Span       *timeline.Span // of the request that asked for it; nil = nothing is recorded
}

// Keep lets an execution outlive a connection that breaks. The zero value does not.
type Keep struct {
	Bytes int           // of output that is held for the client
	Grace time.Duration // for the client to come back
	Acks  bool          // the client acknowledges: more output waits. Otherwise it pushes out what was sent before
}

// Environ is what the program's environment is told: that which was asked for, and that CodeOcean's programs look for.
func (r Request) Environ() map[string]string {
	env := make(map[string]string, len(r.Env)+1)
	maps.Copy(env, r.Env)
	env["CODEOCEAN"] = "true"
	return env
}

// Bounds of Keep, and what stands for a value that is not given.
const (
	MinKeepBytes, DefaultKeepBytes, MaxKeepBytes = 64 << 10, 256 << 10, 16 << 20
	DefaultKeepGrace, MaxKeepGrace               = 30 * time.Second, 10 * time.Minute
)

// NewKeep fills in defaults; 0 stands for them.
func NewKeep(bytes, graceSeconds int, acks bool) (Keep, error) {
	k := Keep{Bytes: cmp.Or(bytes, DefaultKeepBytes), Grace: cmp.Or(time.Duration(graceSeconds)*time.Second, DefaultKeepGrace), Acks: acks}
	if k.Bytes < MinKeepBytes || k.Bytes > MaxKeepBytes {
		return Keep{}, fault.New(fault.Invalid, "reattach.bufferBytes: %d is not between %d and %d", bytes, MinKeepBytes, MaxKeepBytes)
	}
	if graceSeconds < 0 || graceSeconds > int(MaxKeepGrace/time.Second) {
		return Keep{}, fault.New(fault.Invalid, "reattach.graceSeconds: %d is not between 1 and %d", graceSeconds, MaxKeepGrace/time.Second)
	}
	return k, nil
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// maxArgument is the longest argument, and the longest variable with its name, that Linux hands to a program: in bytes, without the NUL that ends it.
const maxArgument = 128<<10 - 1

// maxArguments is how much the command and all variables may take together, each with its NUL and its pointer, in bytes. Linux hands over 2 MiB: the other half is
// for what the image sets.
const maxArguments = 1 << 20

// perArgument is what an argument takes beside its text: the NUL that ends it and a pointer.
const perArgument = 1 + 8

// Validate refuses what no program can be told: names that no environment can hold, and what is too long.
func (r Request) Validate() error {
	all := len(r.Command) + perArgument
	if n := len(r.Command); n > maxArgument {
		return fault.New(fault.Invalid, "the command takes %d bytes, at most %d can be passed on: put it into a file", n, maxArgument)
	}
	for name, value := range r.Env {
		if !envName.MatchString(name) {
			return fault.New(fault.Invalid, "the name of an environment variable must match [A-Za-z_][A-Za-z0-9_]*: %q", name)
		}
		if n := len(name) + len("=") + len(value); n > maxArgument {
			return fault.New(fault.Invalid, "the environment variable %.64s takes %d bytes, at most %d can be passed on: put it into a file", name, n, maxArgument)
		} else {
			all += n + perArgument
		}
	}
	if all > maxArguments {
		return fault.New(fault.Invalid, "the command and its %d environment variables take %d bytes together, at most %d can be passed on: put them into files", len(r.Env), all, maxArguments)
	}
	return nil
}

// What may wait in one Store. They live as long as their runner, and nothing else ends them.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 16 << 20
)

// Store keeps requests until they are taken. The zero value is ready for use.
type Store struct {
	NewID func() string // names a request; nil = a random id
	// Running counts the executions of the runner that were begun and have no verdict yet. Whoever serves them keeps it.
	Running atomic.Int64

	mu      sync.Mutex
	waiting map[string]Request
	bytes   int
}

func (r Request) bytes() int {
	n := len(r.Command)
	for k, v := range r.Env {
		n += len(k) + len(v)
	}
	return n
}

// Put keeps a request under a fresh id.
func (s *Store) Put(r Request) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) >= maxWaiting || s.bytes+r.bytes() > maxWaitingBytes {
		return "", fault.New(fault.Invalid, "%d executions of this runner were never begun: connect to their WebSockets, or take another runner", len(s.waiting))
	}
	id := ident.New()
	if s.NewID != nil {
		id = s.NewID()
	}
	s.keep(id, r)
	return id, nil
}

// Restore puts a request back that was taken but not begun.
func (s *Store) Restore(id string, r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(id, r)
}

func (s *Store) keep(id string, r Request) {
	if s.waiting == nil {
		s.waiting = map[string]Request{}
	}
	s.waiting[id] = r
	s.bytes += r.bytes()
}

// Waiting is how many requests were not taken yet.
func (s *Store) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

// Take consumes a request: only the first caller gets it.
func (s *Store) Take(id string) (Request, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.waiting[id]
	delete(s.waiting, id)
	s.bytes -= r.bytes()
	return r, ok
}
