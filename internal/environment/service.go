package environment

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"rockpool/internal/fault"
)

// ErrUnknown says that there is no such environment.
var ErrUnknown = errors.New("unknown execution environment")

func unknown(id ID) error {
	return fault.Wrap(fault.NotFound, ErrUnknown, "execution environment %d is unknown", id)
}

// Cluster is where template jobs live.
type Cluster interface {
	// RegisterTemplate stores the definition and returns once it is known that it can be placed.
	RegisterTemplate(ctx context.Context, e Environment) error
	// ResolveImage asks what a reference means now. It is the zero Pin where that cannot be learned.
	ResolveImage(ctx context.Context, image string) (Pin, error)
	DeleteTemplate(ctx context.Context, id ID) error
	// Templates are the definitions of all live template jobs.
	Templates(ctx context.Context) ([]Environment, error)
	// Recovered are those that there were when the cluster was listed first, which it waits for.
	Recovered(ctx context.Context) ([]Environment, error)
}

// Pools are kept by package runner.
type Pools interface {
	// Want says how many runners of which settings shall stand ready. Runners of other settings are replaced.
	Want(e Environment)
	// Roll replaces the idle runners although their settings are unchanged.
	Roll(id ID)
	// Forget gives the pool up with the runners that are known.
	Forget(id ID)
	// Drop forgets the pool and removes all its runners, used ones too.
	Drop(ctx context.Context, id ID) error
}

// Service is the catalogue and the provisioning of environments.
type Service struct {
	cluster Cluster
	pools   Pools
	pulls   bool // images are pulled anew, so an unchanged reference may mean a changed image
	locks   keyedLock

	mu    sync.RWMutex
	known map[ID]Environment
}

// NewService makes an empty catalogue. pulls says whether images are pulled anew for new runners.
func NewService(cluster Cluster, pools Pools, pulls bool) *Service {
	return &Service{cluster: cluster, pools: pools, pulls: pulls, known: map[ID]Environment{}}
}

// Recover fills the catalogue from the cluster's first listing.
func (s *Service) Recover(ctx context.Context) error {
	found, err := s.cluster.Recovered(ctx)
	if err != nil {
		return err
	}
	for _, e := range found {
		s.adopt(e)
	}
	return nil
}

func (s *Service) adopt(e Environment) {
	s.mu.Lock()
	s.known[e.ID] = e
	s.mu.Unlock()
	s.pools.Want(e)
}

// Seen takes in a definition that another gateway stored; again = over one that was known. What that gateway does about an image that may have changed is
// done here too: the pool may be this one's to keep.
func (s *Service) Seen(e Environment, again bool) {
	old, ok := s.lookup(e.ID)
	if !ok || !old.Equal(e) {
		s.adopt(e)
	}
	if ok && again && s.rolls(old, e) {
		s.pools.Roll(e.ID)
	}
}

// rolls reports whether e, put over old, may mean another image although it says the same.
func (s *Service) rolls(old, e Environment) bool {
	return old.Settings() == e.Settings() && s.pulls && !e.FixedImage()
}

// Gone takes in that another gateway deleted an environment.
func (s *Service) Gone(id ID) {
	if _, ok := s.lookup(id); !ok {
		return
	}
	s.mu.Lock()
	delete(s.known, id)
	s.mu.Unlock()
	s.pools.Forget(id)
}

func (s *Service) lookup(id ID) (Environment, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.known[id]
	return e, ok
}

// Put creates or replaces a definition and reports whether it is new. unbounded says that e tells nothing of bounds of the pool's size: those of the definition
// that it replaces hold on, unless it asks for another size.
func (s *Service) Put(ctx context.Context, e Environment, unbounded bool) (created bool, err error) {
	if err := e.Validate(); err != nil {
		return false, err
	}
	unlock, err := s.locks.lock(ctx, e.ID)
	if err != nil {
		return false, err
	}
	defer unlock()
	old, existed := s.lookup(e.ID)
	if unbounded && old.PoolSize == e.PoolSize {
		e.PoolSizeMin, e.PoolSizeMax = old.PoolSizeMin, old.PoolSizeMax
	}
	if e.Pin, err = s.pin(ctx, e, old); err != nil {
		return false, err
	}
	// The same tag may mean a new image. Where it cannot be learned whether it does, the idle runners are replaced.
	roll := existed && s.rolls(old, e)
	if existed && old.Equal(e) && !roll {
		return false, nil
	}
	if err := s.cluster.RegisterTemplate(ctx, e); err != nil {
		return false, err
	}
	s.adopt(e)
	if roll {
		s.pools.Roll(e.ID)
	}
	return !existed, nil
}

// pin finds out what the image is, so that all runners get the same and a tag that moved is seen.
func (s *Service) pin(ctx context.Context, e, old Environment) (Pin, error) {
	same := old.Image == e.Image && old.Pin.Digest != ""
	switch {
	case e.FixedImage():
		return Pin{}, nil
	case same && !s.pulls:
		return old.Pin, nil
	}
	p, err := s.cluster.ResolveImage(ctx, e.Image)
	if same && fault.Is(err, fault.Unavailable) { // what was learned holds until something else is
		return old.Pin, nil
	}
	return p, err
}

// Delete removes an environment with all its runners.
func (s *Service) Delete(ctx context.Context, id ID) error {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, ok := s.lookup(id); !ok {
		return unknown(id)
	}
	return s.remove(ctx, id)
}

func (s *Service) remove(ctx context.Context, id ID) error {
	// The template goes first: if it stays, a restart would bring the environment back, and the caller has to know.
	if err := s.cluster.DeleteTemplate(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.known, id)
	s.mu.Unlock()
	return s.pools.Drop(ctx, id)
}

// Get is one definition. With fetch the cluster's template is compared first: it is adopted, and an environment whose template
// has gone is removed.
func (s *Service) Get(ctx context.Context, id ID, fetch bool) (Environment, error) {
	if fetch {
		found, err := s.cluster.Templates(ctx)
		if err != nil {
			return Environment{}, err
		}
		if err := s.sync(ctx, id, found); err != nil {
			return Environment{}, err
		}
	}
	e, ok := s.lookup(id)
	if !ok {
		return Environment{}, unknown(id)
	}
	return e, nil
}

// List is all definitions in the order of their ids; see Get for fetch.
func (s *Service) List(ctx context.Context, fetch bool) ([]Environment, error) {
	if fetch {
		found, err := s.cluster.Templates(ctx)
		if err != nil {
			return nil, err
		}
		ids := map[ID]bool{}
		for _, e := range found {
			ids[e.ID] = true
		}
		for _, e := range s.all() {
			ids[e.ID] = true
		}
		for id := range ids {
			if err := s.sync(ctx, id, found); err != nil {
				return nil, err
			}
		}
	}
	return s.all(), nil
}

func (s *Service) all() []Environment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Environment, 0, len(s.known))
	for _, e := range s.known {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Environment) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// sync brings one environment in line with what was found in the cluster.
func (s *Service) sync(ctx context.Context, id ID, found []Environment) error {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	old, known := s.lookup(id)
	i := slices.IndexFunc(found, func(e Environment) bool { return e.ID == id })
	switch {
	case i < 0 && known:
		return s.remove(ctx, id)
	case i >= 0 && (!known || !old.Equal(found[i])):
		s.adopt(found[i])
	}
	return nil
}

// keyedLock serialises the changes of one environment.
type keyedLock struct {
	mu   sync.Mutex
	held map[ID]chan struct{}
}

func (k *keyedLock) lock(ctx context.Context, id ID) (func(), error) {
	for {
		k.mu.Lock()
		busy, ok := k.held[id]
		if !ok {
			if k.held == nil {
				k.held = map[ID]chan struct{}{}
			}
			done := make(chan struct{})
			k.held[id] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, id)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
