package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/peer"
	"rockpool/internal/timeline"
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
	// Stores take the place of those in Dir; nil = they are there.
	Stores *Stores
	// SegmentBytes is the size of a log segment, which is allocated ahead. 0 = 64 MiB.
	SegmentBytes int
	// Network connects servers over TCP; Transport is used instead when both are set.
	Network *peer.Network
	// Bootstrap are the servers that a fresh log begins with, on each of them the same; an empty list that is not nil makes the server wait for a leader to
	// take it in. Without a list a server with neither Network nor Transport, or with a
	// Transport only, is a cluster of its own, and one with a Network waits for Bootstrap or for a leader to take it in.
	Bootstrap []Peer
	// Timeout is how long a server may hear nothing of a leader before it wants to be one. 0 = 500 ms, and 50 ms alone.
	Timeout time.Duration
	// A snapshot is written once so many entries or bytes were applied since the last one, or one entry and so much time has passed.
	SnapshotEntries uint64        // 0 = 16,384
	SnapshotBytes   int64         // 0 = 64 MiB; more where the last snapshot was larger
	SnapshotAge     time.Duration // 0 = 1 h
}

func (c *Config) defaults() {
	if c.Log == nil {
		c.Log = logging.Discard()
	}
	if c.Timeout == 0 {
		c.Timeout = 500 * time.Millisecond
		if c.alone() {
			c.Timeout = 50 * time.Millisecond // there is nobody to wait for
		}
	}
	c.SnapshotEntries = cmp.Or(c.SnapshotEntries, 16384)
	c.SnapshotBytes = cmp.Or(c.SnapshotBytes, 64<<20)
	c.SnapshotAge = cmp.Or(c.SnapshotAge, time.Hour)
}

// alone reports whether there can be no other server.
func (c *Config) alone() bool { return c.Transport == nil && c.Network == nil }

// applyBound ends an Apply or a Barrier whose context sets no deadline.
const applyBound = 10 * time.Second

// Raft is one server's part in the cluster.
type Raft struct {
	cfg     Config
	raft    atomic.Pointer[raft.Raft]
	leading chan bool     // of 1
	again   chan struct{} // of 1: the state was replaced, so a new term must begin
	fatal   chan error
	tasks   lifecycle.Tasks // those that wait for futures
	changes changes
	rounds  rounds
	caught  atomic.Bool // the state is no longer that of before the start
	snaps   atomic.Pointer[raft.SnapshotStore]
	timed   atomic.Int32 // calls of Apply that are recorded
	awaited atomic.Int32 // calls of Save and Snapshot
}

// New makes a server's part. It does nothing before Run.
func New(cfg Config) *Raft {
	cfg.defaults()
	return &Raft{cfg: cfg, leading: make(chan bool, 1), again: make(chan struct{}, 1), fatal: make(chan error, 1)}
}

// Run opens the log, takes part in the cluster until ctx ends, and closes everything again. A leader that ends hands leadership on first.
func (r *Raft) Run(ctx context.Context) (err error) {
	stores, err := r.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.close()) }()

	conf, trans := r.config(), r.transport()
	m := newMachine(r.cfg, r.fatal, &r.timed, &r.awaited)
	if err := r.prepare(conf, m, stores, trans); err != nil {
		return errors.Join(err, closeTransport(trans))
	}
	node, err := raft.NewRaft(conf, m, stores.log, stores.stable, stores.snapshots, trans)
	if err != nil {
		return errors.Join(fmt.Errorf("start Raft: %w", err), closeTransport(trans))
	}
	r.snaps.Store(&stores.snapshots)
	r.raft.Store(node)
	err = r.follow(ctx, node, m)
	r.raft.Store(nil)
	m.end()
	// Calls under way are waited for while Raft still runs: an entry that is committed but not applied when Raft stops is never
	// answered. Without a quorum they might wait for ever; Raft's end answers those.
	bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainBound)
	defer cancel()
	drained := r.tasks.Wait(bctx)
	if node.State() == raft.Leader && voters(node) > 1 {
		_ = node.LeadershipTransfer().Error() // or the others find out by themselves
	}
	err = errors.Join(err, wait(node.Shutdown()), closeTransport(trans))
	if drained != nil {
		bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainBound)
		defer cancel()
		err = errors.Join(err, r.tasks.Wait(bctx))
	}
	return err
}

// prepare makes the log's first configuration, or the one that an operator wrote down for a cluster that cannot recover by itself.
func (r *Raft) prepare(conf *raft.Config, m *machine, s stores, trans raft.Transport) error {
	known, err := raft.HasExistingState(s.log, s.stable, s.snapshots)
	if err != nil {
		return fmt.Errorf("look for an existing Raft state: %w", err)
	}
	if known {
		return r.recover(conf, m, s, trans)
	}
	first := r.cfg.Bootstrap
	if first == nil && r.cfg.Network == nil {
		first = []Peer{{ID: r.cfg.ServerID, Address: string(trans.LocalAddr()), Voter: true}}
	}
	if len(first) == 0 {
		return nil
	}
	if err := raft.BootstrapCluster(conf, s.log, s.stable, s.snapshots, trans, configuration(first)); err != nil {
		return fmt.Errorf("bootstrap the cluster: %w", err)
	}
	return nil
}

const drainBound = 3 * time.Second

func wait(f raft.Future) error {
	if err := f.Error(); err != nil {
		return fmt.Errorf("stop Raft: %w", err)
	}
	return nil
}

// follow keeps the newest leadership in r.leading, so that neither Raft nor a slow reader ever waits, and has snapshots written.
func (r *Raft) follow(ctx context.Context, node *raft.Raft, m *machine) error {
	defer r.changes.tell()
	defer r.signal(false)
	seen := make(chan raft.Observation, 1)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	node.RegisterObserver(observer)
	defer node.DeregisterObserver(observer)
	aged := time.NewTicker(max(r.cfg.SnapshotAge/8, time.Second))
	defer aged.Stop()
	for {
		select {
		case lead := <-node.LeaderCh():
			r.signal(lead)
		case <-r.again:
			if node.State() == raft.Leader {
				r.signal(true)
			}
		case <-seen:
		case <-m.full:
			r.compact(node, m)
			continue
		case now := <-aged.C:
			if m.older(now, r.cfg.SnapshotAge) {
				r.compact(node, m)
			}
			continue
		case err := <-r.fatal:
			return err
		case <-ctx.Done():
			select {
			case err := <-r.fatal: // why it ends matters more than that it was told to
				return err
			default:
				return nil
			}
		}
		r.changes.tell()
	}
}

// compact has a snapshot written in the background, one at a time: what asks for it goes on asking until the state was taken, and Raft would write one for each time it was asked.
// How much of the log stays behind it follows the size of entries.
func (r *Raft) compact(node *raft.Raft, m *machine) {
	if !m.asked.CompareAndSwap(false, true) {
		return
	}
	keep := node.ReloadableConfig()
	keep.TrailingLogs = m.trailing(r.cfg.SnapshotBytes)
	if err := node.ReloadConfig(keep); err != nil {
		r.cfg.Log.WithError(err).Warn("the length of the log that stays could not be set")
	}
	r.tasks.Go(func() {
		defer m.asked.Store(false)
		if err := node.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && !errors.Is(err, raft.ErrRaftShutdown) && !m.ending.Load() {
			r.cfg.Log.WithError(err).Warn("a snapshot could not be written, it will be tried again")
		}
	})
}

// signal replaces a value that nobody has read. Only follow calls it.
func (r *Raft) signal(lead bool) {
	select {
	case <-r.leading:
	default:
	}
	r.leading <- lead
}

// Leadership holds the newest change of leadership. It has one reader.
func (r *Raft) Leadership() <-chan bool { return r.leading }

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
	span, begun := timeline.From(ctx), time.Time{}
	if span != nil {
		begun = time.Now()
		r.timed.Add(1)
		defer r.timed.Add(-1)
	}
	var f raft.ApplyFuture
	err = r.await(ctx, func() error {
		f = n.Apply(entry, bound(ctx))
		return f.Error()
	})
	if err != nil {
		return nil, 0, err
	}
	result = f.Response()
	if a, ok := result.(applied); ok { // also where somebody else asked
		result = a.result
		a.record(span, begun)
	}
	if err, ok := result.(error); ok {
		return nil, f.Index(), err
	}
	return result, f.Index(), nil
}

// record adds the steps of an entry to the span that it belongs to.
func (a applied) record(span *timeline.Span, begun time.Time) {
	if span == nil || a.appended.IsZero() {
		return
	}
	span.Past(timeline.LogQueue, begun, a.appended)
	span.Past(timeline.LogAppend, a.appended, a.begun)
	span.Past(timeline.LogApply, a.begun, a.ended)
	span.Past(timeline.LogAnswer, a.ended, time.Now())
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
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wait for the log: %w", err) // before anything was asked
	}
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
	r.awaited.Add(1)
	defer r.awaited.Add(-1)
	if err := n.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("write a snapshot: %w", err)
	}
	return nil
}
