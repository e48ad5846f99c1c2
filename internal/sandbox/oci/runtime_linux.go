//go:build linux && cgo

package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

var (
	validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9.-]{0,31}$`)
	validID   = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)
)

// Runtime is the node's side of all sandboxes of one OCI runtime. Its methods may be called concurrently.
type Runtime struct {
	cfg        Config
	kind       kind
	version    string
	bootID     string
	inside     []byte // the program that runs in every container
	insideHash string
	filter     []byte
	filterName string
	groups     func(name string) sandbox.Groups
	noIDMap    atomic.Bool // the kernel refused to map the files of an image
	joins      atomic.Bool // it has started a program in a network namespace of the node
	preparing  sync.Mutex
	wg         sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	sandboxes map[string]*Sandbox
}

// New asks the runtime's program for its version and opens the state directory. What does not work is an error that names the
// runtime and its path.
func New(cfg Config) (*Runtime, error) {
	cfg = cfg.withDefaults()
	switch {
	case !validName.MatchString(cfg.Name):
		return nil, fmt.Errorf("OCI runtime %q: %w name: letters, digits, \"-\" and \".\" are allowed", cfg.Name, sandbox.ErrInvalid)
	case !filepath.IsAbs(cfg.Program) || !filepath.IsAbs(cfg.Dir) || !filepath.IsAbs(cfg.MountDir) || !validID.MatchString(cfg.CgroupParent):
		return nil, fmt.Errorf("OCI runtime %s: %w configuration: the program and the directories must be absolute paths", cfg.Name, sandbox.ErrInvalid)
	case uint64(cfg.IDBase)+uint64(cfg.MaxSandboxes)*idsPerSandbox >= 1<<31:
		return nil, fmt.Errorf("OCI runtime %s: %w configuration: the ids leave the range of user ids", cfg.Name, sandbox.ErrInvalid)
	}
	r := &Runtime{cfg: cfg, kind: kindOf(cfg.Name, cfg.Program), sandboxes: map[string]*Sandbox{}}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("OCI runtime %s: %w", cfg.Name, err)
	}
	return r, nil
}

func (cfg Config) withDefaults() Config {
	if cfg.MountDir == "" {
		cfg.MountDir = "/run/rockpool-oci"
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "rockpool"
	}
	if cfg.IDBase == 0 {
		cfg.IDBase = 0x50000000
	}
	if cfg.MaxSandboxes <= 0 {
		cfg.MaxSandboxes = 1024
	}
	if cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		cfg.Log = silent
	}
	return cfg
}

// Discard ends all sandboxes of a runtime that is no longer configured, and removes its state directory. Its program may be
// gone: what it started is found by process, control group and mount.
func Discard(ctx context.Context, cfg Config) error {
	r := &Runtime{cfg: cfg.withDefaults()}
	groups, err := sandbox.GroupParent(r.cfg.CgroupParent)
	if err != nil {
		return fmt.Errorf("discard OCI runtime %s: %w", cfg.Name, err)
	}
	r.groups = groups
	ids, err := r.List()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard OCI runtime %s: %w", cfg.Name, err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	r.bootID = boot
	for _, id := range ids {
		if err := r.wipe(ctx, id); err != nil {
			return fmt.Errorf("discard OCI runtime %s: %w", cfg.Name, err)
		}
	}
	r.forgetMounts()
	return removeAll(r.cfg.Dir)
}

func bootID() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(boot)), err
}

func (r *Runtime) open() (err error) {
	if r.version, err = version(r.cfg.Program); err != nil {
		return err
	}
	if r.bootID, err = bootID(); err != nil {
		return err
	}
	if r.inside, err = insideProgram(); err != nil {
		return err
	}
	sum := sha256.Sum256(r.inside)
	r.insideHash = hex.EncodeToString(sum[:8])
	if !r.kind.ownKernel {
		if r.filter, r.filterName, err = sandbox.SystemCallFilter(); err != nil {
			return err
		}
	}
	if r.groups, err = sandbox.GroupParent(r.cfg.CgroupParent); err != nil {
		return err
	}
	for _, dir := range []string{r.cfg.Dir, r.runtimeRoot(), r.states()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("make state directory private: %w", err)
		}
	}
	return r.prepare()
}

// groupName keeps the groups of this class apart from those of the native sandbox, below the same parent.
func groupName(id string) string { return "oci-" + id }

// Name is what jobs ask for.
func (r *Runtime) Name() string { return r.cfg.Name }

// Version is what the program says it is.
func (r *Runtime) Version() string { return r.version }

func (r *Runtime) program() string {
	return filepath.Join(r.cfg.MountDir, "program-"+r.insideHash, insideName)
}
func (r *Runtime) runtimeRoot() string          { return filepath.Join(r.cfg.Dir, "runtime") }
func (r *Runtime) states() string               { return filepath.Join(r.cfg.Dir, "sandboxes") }
func (r *Runtime) stateDir(id string) string    { return filepath.Join(r.states(), id) }
func (r *Runtime) processFile(id string) string { return filepath.Join(r.stateDir(id), "process.json") }

// List names the sandboxes that have state on disk, alive or not.
func (r *Runtime) List() ([]string, error) {
	entries, err := os.ReadDir(r.states())
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if validID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Lowers lists the lower directories that sandboxes stand on; see [sandbox.Runtime.Lowers].
func (r *Runtime) Lowers() ([]string, error) {
	return sandbox.LowersOf(r.List, func(id string) (sandbox.Spec, error) {
		s, err := r.readState(id)
		return s.Spec, err
	})
}

// reserve takes the lowest free place. A place is a range of ids too; that its directory is made exclusively keeps it from
// every other runtime of the machine.
func (r *Runtime) reserve() (slot int, err error) {
	for slot := range r.cfg.MaxSandboxes {
		err := os.Mkdir(r.place(slot), 0o700)
		if err == nil {
			return slot, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return 0, fmt.Errorf("reserve a place: %w", err)
		}
	}
	return 0, sandbox.ErrFull
}

func (r *Runtime) idBase(slot int) uint32 {
	if !r.kind.userNS {
		return 0
	}
	return r.cfg.IDBase + uint32(slot)*idsPerSandbox
}

func (r *Runtime) known(id string) *Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sandboxes[id]
}

// adopt makes the sandbox known and starts watching it.
func (r *Runtime) adopt(s *Sandbox) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fs.ErrClosed
	}
	if r.sandboxes[s.id] != nil {
		return fmt.Errorf("%w: %s", sandbox.ErrExists, s.id)
	}
	r.sandboxes[s.id] = s
	r.wg.Go(s.watch)
	return nil
}

func (r *Runtime) forget(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[s.id] == s {
		delete(r.sandboxes, s.id)
	}
}

// Remove destroys whatever remains of a sandbox: a live one, a dead one, or debris of one whose creation was cut short.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("%w sandbox id", sandbox.ErrInvalid)
	}
	if s := r.known(id); s != nil {
		return s.Destroy(ctx)
	}
	return r.wipe(ctx, id)
}

// wipe removes a container, its groups, its mounts and its state, in this order: each needs the one before it gone.
func (r *Runtime) wipe(ctx context.Context, id string) error {
	st, err := r.readState(id)
	if errors.Is(err, sandbox.ErrUnknown) {
		return removeAll(r.stateDir(id))
	}
	if err != nil {
		return err
	}
	if process, err := r.identify(st); err == nil {
		_ = signalPidfd(process, unix.SIGKILL)
		_ = process.Close()
	}
	// What the runtime does not know, or cannot end, its control groups still hold.
	deleted := r.call(ctx, "delete", "--force", id)
	if err := r.groups(groupName(id)).End(ctx); err != nil {
		return errors.Join(deleted, err)
	}
	if err := r.takeDown(st.Slot); err != nil {
		return err
	}
	// What a runtime may have kept of a container that it could not delete; ids are never used again.
	return errors.Join(removeAll(filepath.Join(r.runtimeRoot(), id)), removeAll(r.stateDir(id)))
}

func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// Close releases descriptors and waits for the watchers; sandboxes keep running. Where no sandbox of any runtime is left, the
// mount directory goes too; whoever needs it makes it again.
func (r *Runtime) Close() error {
	r.mu.Lock()
	already := r.closed
	r.closed = true
	all := make([]*Sandbox, 0, len(r.sandboxes))
	for _, s := range r.sandboxes {
		all = append(all, s)
	}
	r.mu.Unlock()
	if already {
		return nil
	}
	for _, s := range all {
		s.detach()
	}
	r.wg.Wait()
	if left, err := r.List(); err == nil && len(left) == 0 {
		r.forgetMounts()
	}
	entries, err := os.ReadDir(r.cfg.MountDir)
	if err != nil {
		return nil //nolint:nilerr // there is nothing to tidy
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			return nil
		}
	}
	if unix.Unmount(r.cfg.MountDir, unix.UMOUNT_NOFOLLOW) == nil {
		_ = os.Remove(r.cfg.MountDir)
	}
	return nil
}

// forgetMounts takes away what a runtime keeps mounted in its own directory for the next sandbox, as runsc does with a network
// namespace; it makes it again.
func (r *Runtime) forgetMounts() {
	kept, _ := os.ReadDir(r.runtimeRoot())
	for _, e := range kept {
		if path := filepath.Join(r.runtimeRoot(), e.Name()); mountedAt(path) {
			_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
}
