package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
)

// Machine is the state machine. Its methods are called from one goroutine, but for the function that Snapshot returns.
type Machine interface {
	// Apply applies one entry. An error means that the machine must not go on.
	Apply(index uint64, entry []byte) (result any, err error)
	// Snapshot returns a function that writes the state as it is now, while entries go on being applied.
	Snapshot() (persist func(io.Writer) error)
	Restore(io.Reader) error
}

// Config is what a server's Raft needs.
type Config struct {
	Dir      string // the log and snapshots live here; empty = in memory, for tests
	ServerID string
	Machine  Machine
	Log      logging.Logger
	// Transport connects servers. nil = a cluster of this one server.
	Transport raft.Transport
	// SegmentBytes is the size of a log segment, which is allocated ahead. 0 = 64 MiB.
	SegmentBytes int
}

// applyBound ends an Apply or a Barrier whose context sets no deadline.
const applyBound = 10 * time.Second

// Raft is one server's part in the cluster.
type Raft struct {
	cfg     Config
	raft    atomic.Pointer[raft.Raft]
	leading chan bool // of 1
	fatal   chan error
	tasks   lifecycle.Tasks // those that wait for futures
}

// New makes a server's part. It does nothing before Run.
func New(cfg Config) *Raft {
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	return &Raft{cfg: cfg, leading: make(chan bool, 1), fatal: make(chan error, 1)}
}

// Run opens the log, takes part in the cluster until ctx ends, and closes everything again.
func (r *Raft) Run(ctx context.Context) (err error) {
	stores, err := r.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.close()) }()

	conf := r.config()
	trans := r.cfg.Transport
	if trans == nil {
		_, trans = raft.NewInmemTransport(raft.ServerAddress(r.cfg.ServerID))
	}
	known, err := raft.HasExistingState(stores.log, stores.stable, stores.snapshots)
	if err != nil {
		return fmt.Errorf("look for an existing Raft state: %w", err)
	}
	if !known {
		only := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: trans.LocalAddr()}}}
		if err := raft.BootstrapCluster(conf, stores.log, stores.stable, stores.snapshots, trans, only); err != nil {
			return fmt.Errorf("bootstrap the cluster: %w", err)
		}
	}
	node, err := raft.NewRaft(conf, &machine{r.cfg.Machine, r.fatal, nil}, stores.log, stores.stable, stores.snapshots, trans)
	if err != nil {
		return fmt.Errorf("start Raft: %w", err)
	}
	r.raft.Store(node)
	err = r.forward(ctx, node.LeaderCh())
	r.raft.Store(nil)
	// Calls under way are waited for while Raft still runs: an entry that is committed but not applied when Raft stops is never
	// answered. Without a quorum they might wait for ever; Raft's end answers those.
	bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainBound)
	defer cancel()
	drained := r.tasks.Wait(bctx)
	err = errors.Join(err, wait(node.Shutdown()))
	if drained != nil {
		bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainBound)
		defer cancel()
		err = errors.Join(err, r.tasks.Wait(bctx))
	}
	return err
}

const drainBound = 3 * time.Second

func wait(f raft.Future) error {
	if err := f.Error(); err != nil {
		return fmt.Errorf("stop Raft: %w", err)
	}
	return nil
}

// forward keeps the newest leadership in r.leading, so that neither Raft nor a slow reader ever waits.
func (r *Raft) forward(ctx context.Context, ch <-chan bool) error {
	defer r.signal(false)
	for {
		select {
		case lead := <-ch:
			r.signal(lead)
		case err := <-r.fatal:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// signal replaces a value that nobody has read. Only forward calls it.
func (r *Raft) signal(lead bool) {
	select {
	case <-r.leading:
	default:
	}
	r.leading <- lead
}

// Leadership holds the newest change of leadership. It has one reader.
func (r *Raft) Leadership() <-chan bool { return r.leading }

func (r *Raft) config() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.ServerID)
	c.Logger = bridge(r.cfg.Log)
	c.CommitTimeout = 2 * time.Millisecond // followers see a commit soon; the leader applies at once anyway
	// BatchApplyCh stays off: entries in its buffer at shutdown are never answered. Entries that wait for one another's fsync share
	// the next one all the same.
	c.MaxAppendEntries = 256
	c.SnapshotThreshold = 16384
	c.SnapshotInterval = 30 * time.Second
	c.TrailingLogs = 8192
	c.NoLegacyTelemetry = true
	if r.cfg.Transport == nil {
		// Alone there is nobody to wait for.
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	}
	return c
}

type stores struct {
	log       raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	close     func() error
}

func (r *Raft) open() (stores, error) {
	if r.cfg.Dir == "" {
		mem := raft.NewInmemStore()
		return stores{mem, mem, raft.NewInmemSnapshotStore(), func() error { return nil }}, nil
	}
	dir := filepath.Join(r.cfg.Dir, "log")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return stores{}, fmt.Errorf("make the log directory: %w", err)
	}
	unlock, err := Lock(filepath.Join(r.cfg.Dir, "lock"))
	if err != nil {
		return stores{}, err
	}
	// The log does not close the store of its own description, and that one's lock would keep the next server out.
	meta := &metadb.BoltMetaDB{}
	closing := []func() error{unlock, meta.Close}
	closeAll := func() error {
		var errs []error
		for _, c := range slices.Backward(closing) {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	wal, err := raftwal.Open(dir, raftwal.WithSegmentSize(cmp.Or(r.cfg.SegmentBytes, 64<<20)), raftwal.WithMetaStore(meta),
		raftwal.WithLogger(bridge(r.cfg.Log)))
	if err != nil {
		return stores{}, errors.Join(fmt.Errorf("open the log in %s: %w", dir, err), closeAll())
	}
	closing = append(closing, wal.Close)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(r.cfg.Dir, 2, bridge(r.cfg.Log))
	if err != nil {
		return stores{}, errors.Join(fmt.Errorf("open the snapshots: %w", err), closeAll())
	}
	return stores{wal, wal, snaps, closeAll}, nil
}

// Lock makes sure that a data directory has one process. The file stays; what holds it is the descriptor, which ends with the process.
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("the data directory %s is in use by another process: stop that one, or give this one a directory of its own: %w", filepath.Dir(path), err), f.Close())
	}
	return f.Close, nil
}

// ErrNotLeader is returned, as fault.Unavailable, where this server cannot decide.
var ErrNotLeader = errors.New("this server is not the leader")

func (r *Raft) node() (*raft.Raft, error) {
	n := r.raft.Load()
	if n == nil {
		return nil, fault.Wrap(fault.Unavailable, ErrNotLeader, "No cluster leader")
	}
	return n, nil
}

// Apply brings an entry onto the log and returns what the machine made of it, with the entry's index. When the machine's result is
// an error, that is the error returned, with the index. When ctx ends first the outcome is not known: the entry may still be applied.
func (r *Raft) Apply(ctx context.Context, entry []byte) (result any, index uint64, err error) {
	n, err := r.node()
	if err != nil {
		return nil, 0, err
	}
	var f raft.ApplyFuture
	err = r.await(ctx, func() error {
		f = n.Apply(entry, bound(ctx))
		return f.Error()
	})
	if err != nil {
		return nil, 0, err
	}
	if err, ok := f.Response().(error); ok {
		return nil, f.Index(), err
	}
	return f.Response(), f.Index(), nil
}

// Barrier returns once everything that was on the log before has been applied here.
func (r *Raft) Barrier(ctx context.Context) error {
	n, err := r.node()
	if err != nil {
		return err
	}
	return r.await(ctx, func() error { return n.Barrier(bound(ctx)).Error() })
}

func bound(ctx context.Context) time.Duration {
	if t, ok := ctx.Deadline(); ok {
		return max(time.Until(t), time.Millisecond)
	}
	return applyBound
}

// await waits for call, or for ctx. Raft's futures cannot be waited for together with anything else, hence the goroutine.
func (r *Raft) await(ctx context.Context, call func() error) error {
	done := make(chan error, 1)
	if !r.tasks.Go(func() { done <- call() }) {
		return fault.Wrap(fault.Unavailable, ErrNotLeader, "No cluster leader")
	}
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the log: %w", ctx.Err())
	}
	if err != nil {
		switch {
		case errors.Is(err, raft.ErrEnqueueTimeout):
			return fault.Wrap(fault.Deadline, err, "the log did not take the entry in time")
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown),
			errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrAbortedByRestore):
			return fault.Wrap(fault.Unavailable, errors.Join(ErrNotLeader, err), "No cluster leader")
		}
		return fmt.Errorf("apply to the log: %w", err)
	}
	return nil
}

// Leader reports whether this server leads, and the id of the leader if one is known.
func (r *Raft) Leader() (leads bool, id string) {
	n := r.raft.Load()
	if n == nil {
		return false, ""
	}
	_, lid := n.LeaderWithID()
	return n.State() == raft.Leader, string(lid)
}

// Stats are Raft's own figures.
func (r *Raft) Stats() map[string]string {
	if n := r.raft.Load(); n != nil {
		return n.Stats()
	}
	return map[string]string{}
}

// Snapshot writes a snapshot now. ErrNothingNew is no error.
func (r *Raft) Snapshot() error {
	n, err := r.node()
	if err != nil {
		return err
	}
	if err := n.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("write a snapshot: %w", err)
	}
	return nil
}
