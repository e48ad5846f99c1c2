package consensus

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"golang.org/x/sys/unix"
)

const (
	trailingMost  = 8192 // entries that stay behind a snapshot for slow followers
	trailingLeast = 64
)

func (r *Raft) config() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.ServerID)
	c.Logger = bridge(r.cfg.Log)
	c.CommitTimeout = 2 * time.Millisecond // followers see a commit soon; the leader applies at once anyway
	// BatchApplyCh stays off: entries in its buffer at shutdown are never answered. Entries that wait for one another's fsync share
	// the next one all the same.
	c.MaxAppendEntries = 256
	c.SnapshotThreshold = r.cfg.SnapshotEntries
	c.SnapshotInterval = 30 * time.Second
	c.TrailingLogs = trailingMost
	c.NoLegacyTelemetry = true
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = r.cfg.Timeout, r.cfg.Timeout, r.cfg.Timeout
	if !r.cfg.alone() {
		// A leader that is cut off steps down before another one can be elected.
		c.LeaderLeaseTimeout = r.cfg.Timeout * 3 / 4
		c.CommitTimeout = 5 * time.Millisecond
	}
	return c
}

// Stores are where a server's log and snapshots are kept.
type Stores struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
}

// end has Run return err, unless it has a reason already.
func (r *Raft) end(err error) {
	select {
	case r.fatal <- err:
	default:
	}
}

type stores struct {
	log       raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	close     func() error
}

func (r *Raft) open() (stores, error) {
	if s := r.cfg.Stores; s != nil {
		return stores{s.Log, s.Stable, s.Snapshots, func() error { return nil }}, nil
	}
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
	if err := mend(dir, meta); err != nil {
		return stores{}, errors.Join(err, closeAll())
	}
	wal, err := raftwal.Open(dir, raftwal.WithSegmentSize(cmp.Or(r.cfg.SegmentBytes, 64<<20)), raftwal.WithMetaStore(meta),
		raftwal.WithSegmentFiler(segment.NewFiler(dir, newLogFiles())), raftwal.WithLogger(bridge(r.cfg.Log)))
	if err != nil {
		return stores{}, errors.Join(fmt.Errorf("open the log in %s: %w", dir, err), closeAll())
	}
	closing = append(closing, wal.Close)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(r.cfg.Dir, 2, bridge(r.cfg.Log))
	if err != nil {
		return stores{}, errors.Join(fmt.Errorf("open the snapshots: %w", err), closeAll())
	}
	return stores{&failstop{WAL: wal, tell: r.end}, wal, snaps, closeAll}, nil
}

// peersFile is what an operator writes into the data directory of each server that is left, all stopped, when a majority is lost for good: a JSON list of
// {"id", "address", "non_voter"}. It is read once.
const peersFile = "peers.json"

func (r *Raft) recover(conf *raft.Config, m *machine, s stores, trans raft.Transport) error {
	if r.cfg.Dir == "" {
		return nil
	}
	path := filepath.Join(r.cfg.Dir, peersFile)
	servers, err := raft.ReadConfigJSON(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recover with %s: %w", path, err)
	}
	if !slices.ContainsFunc(servers.Servers, func(s raft.Server) bool { return s.ID == conf.LocalID }) {
		return fmt.Errorf("recover with %s: it does not list this server, whose id is %s", path, conf.LocalID)
	}
	if err := raft.RecoverCluster(conf, m, s.log, s.stable, s.snapshots, trans, servers); err != nil {
		return fmt.Errorf("recover with %s: %w", path, err)
	}
	if m.stopped != nil { // which the library does not look at
		return fmt.Errorf("recover with %s: %w", path, m.stopped)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	r.cfg.Log.WithField("servers", len(servers.Servers)).Warn("the cluster was given a new list of servers by hand")
	return nil
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
