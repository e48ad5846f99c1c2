//go:build linux && cgo

package sandbox

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Runtime is the node's side of all its sandboxes. Its methods may be called concurrently.
type Runtime struct {
	cfg         Config
	log         logrus.FieldLogger
	binary      *os.File // sealed copy of this program, which the supervisor is executed from
	archive     *os.File // code of warm-ups, once it was asked for; guarded by mu
	binaryPath  string   // as children open it
	hierarchies []hierarchy
	blkio       []hierarchy // the one of v1 for block devices alone, if there is one
	devices     []hierarchy // the same for devices
	filter      []byte
	mountPoint  string
	bootID      string
	dropBounds  func() error // removes the group that is kept bounded
	wg          sync.WaitGroup
	noIDMap     atomic.Bool   // the kernel refused to map the layers of an overlay
	closing     chan struct{} // closed by Close
	wake        chan struct{} // has tidy look again

	mu        sync.Mutex
	closed    bool
	closeBy   time.Time // what cannot be removed until then is left to the next process; set when closed is
	features  uint32    // of the sandboxes made so far
	created   bool
	tried     map[string]*outcome // what the self-test found, by fence; nil before it
	sandboxes map[string]*Sandbox
	slots     map[int]string // slot to id; a slot is a range of host ids and is free again only when the state is gone
	left      []*remains     // of ended sandboxes, those that ended first before others
	tidying   bool           // somebody removes them when they are due
	hurry     int            // so many are due now
}

// New opens the state directory and probes the kernel. What is missing is one error that names all of it.
func New(cfg Config) (*Runtime, error) {
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "rockpool"
	}
	if cfg.IDBase == 0 {
		cfg.IDBase = 0x20000000
	}
	if cfg.MaxSandboxes <= 0 {
		cfg.MaxSandboxes = 1024
	}
	if cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		cfg.Log = silent
	}
	if cfg.Dir == "" || !filepath.IsAbs(cfg.Dir) || !validID.MatchString(cfg.CgroupParent) {
		return nil, fmt.Errorf("%w configuration: Dir must be an absolute path and CgroupParent a plain name", ErrInvalid)
	}
	if uint64(cfg.IDBase)+uint64(cfg.MaxSandboxes)*idsPerSandbox >= 1<<31 {
		return nil, fmt.Errorf("%w configuration: IDBase and MaxSandboxes together leave the range of user ids", ErrInvalid)
	}
	r := &Runtime{cfg: cfg, log: cfg.Log, closing: make(chan struct{}), wake: make(chan struct{}, 1), sandboxes: make(map[string]*Sandbox), slots: make(map[int]string)}
	if err := r.probe(); err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Runtime) open() (err error) {
	if r.filter, err = systemCallFilter(); err != nil {
		return err
	}
	r.mountPoint = filepath.Join(r.cfg.Dir, "mount")
	for _, dir := range []string{r.cfg.Dir, r.mountPoint, r.runners()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("make state directory private: %w", err)
		}
	}
	if err := r.group("").boundTogether(); err != nil {
		return err
	}
	if r.dropBounds, err = r.group("").keepBounds(); err != nil {
		r.log.WithError(err).Info("no control group is kept bounded; an interpreter that waited begins a little later")
	}
	for _, h := range r.hierarchies {
		if !h.unified {
			continue
		}
		switch changed, err := h.mount.favour(); {
		case err != nil:
			r.log.WithError(err).Info("this kernel has programs of an idle machine wait when they are moved to their control group; executions take some milliseconds longer")
		case changed:
			r.log.Info("control groups now favour the moving of processes (mount option " + favourMoves + ")")
		}
	}
	if r.binary, err = sealedSelf(); err != nil {
		return err
	}
	if r.binaryPath, err = pathFromChildren(r.binary); err != nil {
		return err
	}
	ids, err := r.List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if state, err := r.readState(id); err == nil {
			r.slots[state.Slot] = id
		}
	}
	return nil
}

// pathFromChildren names an open file by this process's table of descriptors. A child's own table (/proc/self/fd) would not do: while ForkExec puts the child's
// files in order it may use any number above theirs, and with that the file's.
func pathFromChildren(f *os.File) (string, error) {
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return "", fmt.Errorf("find own process: %w", err)
	}
	return fmt.Sprintf("/proc/%s/fd/%d", self, f.Fd()), nil
}

// sealedSelf copies this program into memory that nothing can write again: a supervisor never runs from a file whose
// descriptor could be had from inside (CVE-2019-5736). The copy begins in the supervisor, and asks for no dynamic linker.
func sealedSelf() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open own program: %w", err)
	}
	defer func() { _ = self.Close() }()
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("rockpool", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("rockpool", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make a memory file: %w", err)
	}
	// A high number: the child's own descriptors are numbered from 0 and must not replace it before execve.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 512)
	_ = unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("move the memory file: %w", err)
	}
	copied := os.NewFile(uintptr(high), "rockpool")
	if _, err := io.Copy(copied, self); err != nil {
		return nil, errors.Join(fmt.Errorf("copy own program: %w", err), copied.Close())
	}
	if err := beginInSupervisor(copied); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the copy of own program: %w", err), copied.Close())
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(high), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal the memory file: %w", err), copied.Close())
	}
	return copied, nil
}

// beginInSupervisor changes where the kernel begins to execute a copy of this program, and takes away its interpreter, which is the dynamic linker. The
// supervisor needs neither that nor what a C library and Go do before main.
func beginInSupervisor(program *os.File) error {
	var head elf.Header64
	if err := binary.Read(io.NewSectionReader(program, 0, int64(binary.Size(head))), native, &head); err != nil {
		return err
	}
	values, err := unix.Auxv()
	if err != nil {
		return err
	}
	const entry = 9 // AT_ENTRY: where the header's own entry is in this process
	at := slices.IndexFunc(values, func(v [2]uintptr) bool { return v[0] == entry })
	if string(head.Ident[:len(elf.ELFMAG)]) != elf.ELFMAG || elf.Class(head.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 || at < 0 {
		return errors.New("it is no program of this machine")
	}
	head.Entry += uint64(supervisorEntry() - values[at][1])
	if err := binary.Write(io.NewOffsetWriter(program, 0), native, &head); err != nil {
		return err
	}
	for i := range int64(head.Phnum) {
		var segment elf.Prog64
		place := int64(head.Phoff) + i*int64(head.Phentsize)
		if err := binary.Read(io.NewSectionReader(program, place, int64(binary.Size(segment))), native, &segment); err != nil {
			return err
		}
		if elf.ProgType(segment.Type) != elf.PT_INTERP {
			continue
		}
		segment.Type = uint32(elf.PT_NULL)
		if err := binary.Write(io.NewOffsetWriter(program, place), native, &segment); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) runners() string                     { return filepath.Join(r.cfg.Dir, "sandboxes") }
func (r *Runtime) stateDir(id string) string           { return filepath.Join(r.runners(), id) }
func (r *Runtime) group(id string) group               { return group{hierarchies: r.hierarchies, rel: id} }
func (r *Runtime) idBase(slot int) uint32              { return r.cfg.IDBase + uint32(slot)*idsPerSandbox }
func (r *Runtime) logFor(id string) logrus.FieldLogger { return r.log.WithField("runner_id", id) }

// List names the sandboxes that have state on disk, alive or not, but for those that were destroyed.
func (r *Runtime) List() ([]string, error) {
	r.mu.Lock()
	going := make(map[string]bool, len(r.left))
	for _, left := range r.left {
		going[left.id] = true
	}
	r.mu.Unlock()
	entries, err := os.ReadDir(r.runners()) // after that: what goes meanwhile is not there, or known to be going
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for _, e := range entries {
		id := e.Name()
		if validID.MatchString(id) && (!going[id] || r.sandboxes[id] != nil) { // or another one has its name by now
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Lowers lists the lower directories that sandboxes stand on, those of earlier processes too. A directory may occur more than once.
func (r *Runtime) Lowers() ([]string, error) {
	return LowersOf(r.List, func(id string) (Spec, error) {
		s, err := r.readState(id)
		return s.Spec, err
	})
}

// reserve registers an id and gives it the lowest free slot.
func (r *Runtime) reserve(id string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, fs.ErrClosed
	}
	for slot := range r.cfg.MaxSandboxes {
		if _, taken := r.slots[slot]; !taken {
			r.slots[slot] = id
			return slot, nil
		}
	}
	return 0, ErrFull
}

func (r *Runtime) release(slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.slots, slot)
}

func (r *Runtime) forget(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[s.id] == s {
		delete(r.sandboxes, s.id)
	}
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
		return fmt.Errorf("%w: %s", ErrExists, s.id)
	}
	r.sandboxes[s.id] = s
	r.wg.Go(s.watch)
	return nil
}

// Remove destroys whatever remains of a sandbox: a live one, a dead one, or debris of one whose creation was cut short.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("%w sandbox id", ErrInvalid)
	}
	if s := r.known(id); s != nil {
		return s.Destroy(ctx)
	}
	if r.remainsOf(id) != nil {
		return nil
	}
	state, err := r.readState(id)
	if err == nil {
		if pidfd, err := r.identify(state); err == nil {
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			_ = unix.Close(pidfd)
		}
	}
	if err := r.wipe(ctx, id); err != nil {
		return err
	}
	if err == nil {
		r.release(state.Slot)
	}
	return nil
}

// wipe kills by group and removes groups and state. Mounts need nothing: they live and die with the mount namespace.
func (r *Runtime) wipe(ctx context.Context, id string) error {
	if err := r.group(id).clear(ctx); err != nil {
		return err
	}
	if err := errors.Join(r.blkioGroup(id).remove(ctx), r.devicesGroup(id).remove(ctx)); err != nil {
		return err
	}
	if err := os.RemoveAll(r.stateDir(id)); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// Close releases descriptors and waits for the watchers; sandboxes keep running.
func (r *Runtime) Close() error {
	r.mu.Lock()
	already := r.closed
	if !already {
		r.closed, r.closeBy = true, time.Now().Add(cleanupTimeout)
	}
	sandboxes := make([]*Sandbox, 0, len(r.sandboxes))
	for _, s := range r.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	r.mu.Unlock()
	if already {
		return nil
	}
	close(r.closing)
	for _, s := range sandboxes {
		s.detach()
	}
	r.wg.Wait()
	var problems []error
	if r.dropBounds != nil {
		problems = append(problems, r.dropBounds())
	}
	for _, f := range []*os.File{r.archive, r.binary} {
		if f != nil {
			problems = append(problems, f.Close())
		}
	}
	return errors.Join(problems...)
}
