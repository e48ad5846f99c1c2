package image

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/sandbox"
)

// Config says where a store is and where it gets images from.
type Config struct {
	Dir         string         // absolute; private to one store
	LocalDirs   []string       // absolute; images on the node may lie below these, and below "local" in Dir
	Mirrors     []string       // registry=host[/path], asked in order before the registry itself; http:// before the host for plain HTTP
	PlainHTTP   []string       // registries without TLS, as host or host:port
	Credentials string         // a Docker config file; "" = that of the user
	MaxBytes    int64          // on disk, above which images that are not in use are removed, the one not used for longest first; 0 = no bound
	MaxAge      time.Duration  // since its last use, after which an image is removed; 0 = no bound
	Limits      Limits         // of one image
	RootCAs     *x509.CertPool // that registries are verified by; nil = the system's

	// InUse lists the layers that sandboxes stand on, those that an earlier process started too. What it names is never removed, and nothing is removed
	// when it fails. nil = there are none but those of leases.
	InUse func() ([]string, error)
	Now   func() time.Time // nil = time.Now
	Log   logging.Logger   // nil = none
}

// Store keeps the images of a node below one directory. Run collects what is no longer used.
type Store struct {
	cfg        Config
	system     string // "/" but in tests
	registries *registries
	pulls      flights[*held]
	unpacking  flights[int64]
	collect    chan struct{} // holds one: something may have become superfluous

	hostMu sync.Mutex
	host   *sandbox.Root // built at most once for each process, so that an upgraded system shows after a restart

	mu     sync.Mutex
	images map[string]*held   // by digest of the configuration
	names  map[string]pointer // by key of a reference
	layers map[string]int64   // bytes on disk, by hexadecimal diffID: layers that are whole
	pins   map[string]int     // layers that a pull under way wants, by hexadecimal diffID
}

// Directories below Config.Dir.
const (
	layersDir = "layers"
	imagesDir = "images"
	workDir   = "work"
	localDir  = "local"
)

// New opens a store, and removes what an interrupted process left behind.
func New(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("image store %q: the directory must be absolute", cfg.Dir)
	}
	for _, dir := range cfg.LocalDirs {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("image store: directory %q for images on this node: it must be absolute", dir)
		}
	}
	cfg.Limits = cfg.Limits.withDefaults()
	cfg.LocalDirs = append([]string{filepath.Join(cfg.Dir, localDir)}, cfg.LocalDirs...)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	for _, sub := range []string{"", layersDir, imagesDir, workDir, localDir} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("make image store: %w", err)
		}
	}
	reg, err := newRegistries(cfg)
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, system: "/", registries: reg, collect: make(chan struct{}, 1),
		images: map[string]*held{}, names: map[string]pointer{}, layers: map[string]int64{}, pins: map[string]int{}}
	s.pulls.grant = func(h *held, callers int) { s.lease(h, callers-1) } // the pull itself holds one
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return s, nil
}

// Options say how to acquire an image.
type Options struct {
	Force       bool           // ask the registry what the tag means now, although an image is here; an error when it does not answer
	Credentials *Credentials   // for the registry; nil = those that are configured
	Progress    func(Progress) // hears of a download; not called when there is none. It must not block.
}

// Image is a lease of an image: it stays on the node until Release.
type Image struct {
	Digest  string // of the manifest or the list that the reference named when it was resolved; "" for host and dir:
	Root    sandbox.Root
	release func()
}

// Release ends the lease. It may be called more than once.
func (i *Image) Release() {
	if i.release != nil {
		i.release()
	}
}

// Acquire gives the image that a reference stands for, and gets it first when it is not there. Callers that want the same image at the same
// time share one pull. Errors have a kind of package fault and name the image.
func (s *Store) Acquire(ctx context.Context, ref string, o Options) (*Image, error) {
	r, err := Parse(ref)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch r.kind {
	case kindHost:
		root, err := s.hostRoot()
		if err != nil {
			return nil, err
		}
		return &Image{Root: root}, nil
	case kindDir:
		image, err := s.directory(r.path)
		return image, about(ref, err)
	}
	mark, err := s.stampOf(r)
	if err != nil {
		return nil, about(ref, err)
	}
	if _, byDigest := digestIn(r); !o.Force || byDigest {
		if image := s.present(r, mark); image != nil {
			return image, nil
		}
	}
	h, err := s.pulls.do(ctx, flightKey(r, mark, o), o.Progress, func(ctx context.Context, m *meter) (*held, error) {
		return s.pull(ctx, r, mark, o.Credentials, m)
	})
	if err != nil {
		return nil, about(ref, err)
	}
	s.wake()
	return s.image(h, r.key()), nil
}

func digestIn(r Reference) (string, bool) {
	if r.kind != kindRegistry {
		return "", false
	}
	h, err := v1.NewHash(r.name.Identifier())
	return h.String(), err == nil
}

// flightKey is equal for callers that may share a pull: nobody gets an image by another one's credentials.
func flightKey(r Reference, mark string, o Options) string {
	key := r.key() + "\n" + mark + "\n" + fmt.Sprint(o.Force)
	if r.kind == kindRegistry {
		key += "\n" + r.name.Context().Name() // a digest is asked for where the reference says
	}
	if o.Credentials != nil {
		key += "\n" + o.Credentials.Username + "\n" + o.Credentials.Password
	}
	return key
}

// stampOf makes an image on the node's disk known by the state of its file, so that one that was replaced is seen.
func (s *Store) stampOf(r Reference) (string, error) {
	if r.kind == kindRegistry {
		return "", nil
	}
	real, err := s.allowedPath(r.path)
	if err != nil {
		return "", err
	}
	if r.kind == kindLayout {
		real = filepath.Join(real, layoutFile)
	}
	return stamp(real)
}

// directory is a root file system that is used in place.
func (s *Store) directory(path string) (*Image, error) {
	real, err := s.allowedPath(path)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(real); err != nil || !info.IsDir() {
		return nil, fault.New(fault.Invalid, "%s is not a directory", path)
	}
	root := sandbox.Root{Lower: []string{real}}
	if err := checkRoot(&root); err != nil {
		return nil, err
	}
	return &Image{Root: root}, nil
}

// Resolved is what a reference means now.
type Resolved struct {
	Digest    string // "" = the reference has none: host and dir:
	Reference string // to exactly this image, whatever the tag will mean
	Bytes     int64  // of the layers as they are transferred; 0 when not known
}

// Resolve asks what a reference means now, without getting the image.
func (s *Store) Resolve(ctx context.Context, ref string, c *Credentials) (Resolved, error) {
	r, err := Parse(ref)
	if err != nil {
		return Resolved{}, err
	}
	if r.kind == kindHost {
		return Resolved{Reference: ref}, nil
	}
	if r.kind == kindDir {
		_, err := s.directory(r.path)
		return Resolved{Reference: ref}, about(ref, err)
	}
	p, done, err := s.plan(ctx, r, c)
	if err != nil {
		return Resolved{}, about(ref, err)
	}
	return Resolved{Digest: p.digest, Reference: r.pinned(p.digest), Bytes: p.bytes()}, about(ref, done())
}

// plan reads what an image is made of at its source. done lets go of the source.
func (s *Store) plan(ctx context.Context, r Reference, c *Credentials) (_ *plan, done func() error, err error) {
	if runtime.GOOS != "linux" {
		return nil, nil, fault.New(fault.Unsupported, "images are unpacked on Linux only")
	}
	if r.kind == kindRegistry {
		found, err := s.registries.find(ctx, r.name, c)
		if err != nil {
			return nil, nil, err
		}
		p, err := found.plan(ctx)
		return p, func() error { return nil }, err
	}
	real, err := s.allowedPath(r.path)
	if err != nil {
		return nil, nil, err
	}
	if r.kind == kindLayout {
		return layout(ctx, real, r.tag)
	}
	return archive(ctx, real, r.tag)
}

func (s *Store) hostRoot() (sandbox.Root, error) {
	s.hostMu.Lock()
	defer s.hostMu.Unlock()
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

func (s *Store) layerDir(hex string) string { return filepath.Join(s.cfg.Dir, layersDir, hex) }
