package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"rockpool/internal/sandbox"
)

// ErrUnsupported is a reference that the store cannot resolve.
var ErrUnsupported = errors.New("image is not supported")

// Host is the reference of the node's own system.
const Host = "host"

// Store keeps the root file systems of a node below one directory.
type Store struct {
	dir    string
	system string // "/" but in tests

	mu   sync.Mutex
	host *sandbox.Root // built at most once for each process, so that an upgraded system shows after a restart
}

// NewStore makes a store below an absolute directory.
func NewStore(dir string) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("image store %q: the directory must be absolute", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	return &Store{dir: dir, system: "/"}, nil
}

// Names are the references that Resolve knows.
func (s *Store) Names() []string { return []string{Host} }

// Resolve gives the root file system that a reference stands for.
func (s *Store) Resolve(ctx context.Context, ref string) (sandbox.Root, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Root{}, err
	}
	if ref != Host {
		return sandbox.Root{}, fmt.Errorf("%w: %q; this node runs %q, the node's own system", ErrUnsupported, ref, Host)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		root, err := s.buildHost()
		if err != nil {
			return sandbox.Root{}, fmt.Errorf("build image %q: %w", Host, err)
		}
		s.host = root
	}
	return copied(*s.host), nil
}

// copied keeps a caller's changes out of the store.
func copied(r sandbox.Root) sandbox.Root {
	r.Lower = append([]string(nil), r.Lower...)
	r.Binds = append([]sandbox.Bind(nil), r.Binds...)
	r.Env = append([]string(nil), r.Env...)
	return r
}
