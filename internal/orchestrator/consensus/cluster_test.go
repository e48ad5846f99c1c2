package consensus_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/consensus"
)

// server is one of several in this process.
type server struct {
	*consensus.Raft
	sum    *sum
	trans  *raft.InmemTransport
	cancel context.CancelFunc
	done   chan struct{}
}

func start(t *testing.T, cfg consensus.Config) *server {
	t.Helper()
	m := &sum{}
	cfg.Machine = m
	s := &server{Raft: consensus.New(cfg), sum: m, done: make(chan struct{})}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(s.done)
		if err := s.Run(ctx); err != nil {
			t.Errorf("%s: %v", cfg.ServerID, err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *server) stop() {
	s.cancel()
	<-s.done
}

func (s *server) total() uint64 {
	s.sum.mu.Lock()
	defer s.sum.mu.Unlock()
	return s.sum.total
}

// stopAll stops leaders first, who hand leadership on to one that still answers.
func stopAll(t *testing.T, all []*server) {
	t.Helper()
	for all = slices.Clone(all); len(all) > 0; {
		i := slices.IndexFunc(all, func(s *server) bool { leads, _ := s.Leader(); return leads })
		i = max(i, 0)
		all[i].stop()
		gone := all[i].trans.LocalAddr()
		all = slices.Delete(all, i, i+1)
		for _, s := range all {
			s.trans.Disconnect(gone) // what is sent to an address where nobody is fails, as it does over TCP
		}
	}
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for start := time.Now(); !f(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func three(t *testing.T) []*server {
	t.Helper()
	var peers []consensus.Peer
	for i := range 3 {
		peers = append(peers, consensus.Peer{ID: fmt.Sprint("s", i), Address: fmt.Sprint("a", i), Voter: true})
	}
	var trans []*raft.InmemTransport
	for _, p := range peers {
		trans = append(trans, consensus.InMemory(p.Address))
	}
	for i, a := range trans {
		for j, b := range trans {
			if i != j {
				a.Connect(b.LocalAddr(), b)
			}
		}
	}
	var all []*server
	for i, p := range peers {
		s := start(t, consensus.Config{ServerID: p.ID, Transport: trans[i], Bootstrap: peers, Timeout: 100 * time.Millisecond})
		s.trans = trans[i]
		all = append(all, s)
	}
	return all
}

func leading(t *testing.T, all []*server) *server {
	t.Helper()
	var l *server
	wait(t, "a leader", func() bool {
		i := slices.IndexFunc(all, func(s *server) bool { leads, _ := s.Leader(); return leads })
		if i >= 0 {
			l = all[i]
		}
		return i >= 0 && l.Barrier(t.Context()) == nil
	})
	return l
}

func TestManyServersInOneProcess(t *testing.T) {
	defer goleak.VerifyNone(t)
	all := three(t)
	defer stopAll(t, all)
	l := leading(t, all)
	if _, _, err := l.Apply(t.Context(), []byte{5}); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		wait(t, "all have it", func() bool { return s.total() == 5 && s.CaughtUp() })
	}
	// A leader that others do not confirm gives no fresh answers.
	if err := l.Verify(t.Context()); err != nil {
		t.Errorf("Verify: %v", err)
	}
	var readers sync.WaitGroup
	for range 50 {
		readers.Go(func() {
			if err := l.Verify(t.Context()); err != nil {
				t.Errorf("Verify: %v", err)
			}
		})
	}
	readers.Wait()
	l.trans.DisconnectAll()
	for _, s := range all {
		s.trans.Disconnect(l.trans.LocalAddr())
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(s *server) bool { return s == l })
	next := leading(t, rest)
	if _, _, err := next.Apply(t.Context(), []byte{7}); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a leader that is cut off verifies itself: %v", err)
	}
	if _, _, err := l.Apply(t.Context(), []byte{100}); err == nil {
		t.Error("a leader that is cut off acknowledges an entry")
	}
	for _, s := range rest {
		l.trans.Connect(s.trans.LocalAddr(), s.trans)
		s.trans.Connect(l.trans.LocalAddr(), l.trans)
	}
	wait(t, "the old leader follows", func() bool { return l.total() == 12 })
}

func TestAServerIsTakenIn(t *testing.T) {
	defer goleak.VerifyNone(t)
	all := three(t)
	l := leading(t, all)
	trans := consensus.InMemory("late")
	late := start(t, consensus.Config{ServerID: "late", Transport: trans, Bootstrap: []consensus.Peer{}, Timeout: 100 * time.Millisecond})
	late.trans = trans
	everybody := slices.Concat(all, []*server{late})
	defer func() { stopAll(t, everybody) }()
	for _, s := range all {
		s.trans.Connect(trans.LocalAddr(), trans)
		trans.Connect(s.trans.LocalAddr(), s.trans)
	}
	changed := l.Changed()
	if err := l.Add(t.Context(), consensus.Peer{ID: "late", Address: "late"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Apply(t.Context(), []byte{9}); err != nil {
		t.Fatal(err)
	}
	wait(t, "it has the log", func() bool { return late.total() == 9 })
	if err := l.Add(t.Context(), consensus.Peer{ID: "late", Address: "late", Voter: true}); err != nil {
		t.Fatal(err)
	}
	if err := l.Transfer(t.Context(), "nobody"); !fault.Is(err, fault.NotFound) {
		t.Errorf("leadership goes to nobody: %v", err)
	}
	if err := l.Transfer(t.Context(), "late"); err != nil {
		t.Fatal(err)
	}
	wait(t, "it leads", func() bool { leads, _ := late.Leader(); return leads })
	<-changed
	wait(t, "a server is removed", func() bool { return late.Remove(t.Context(), "s0") == nil })
	if peers, _, err := late.Peers(); err != nil || len(peers) != 3 {
		t.Errorf("peers: %v, %v", peers, err)
	}
}

func alone(t *testing.T, cfg consensus.Config) *server {
	t.Helper()
	cfg.ServerID = "one"
	cfg.SegmentBytes = 1 << 20
	s := start(t, cfg)
	wait(t, "leadership", func() bool { leads, _ := s.Leader(); return leads && s.Barrier(t.Context()) == nil })
	return s
}

func TestArchives(t *testing.T) {
	dir := t.TempDir()
	s := alone(t, consensus.Config{Dir: dir})
	apply := func(b byte) {
		t.Helper()
		if _, _, err := s.Apply(t.Context(), []byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	save := func() []byte {
		t.Helper()
		a, err := s.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := io.ReadAll(a)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if a.Digest != "sha-256="+base64.StdEncoding.EncodeToString(sum[:]) || a.Size != int64(len(b)) {
			t.Errorf("the digest or size is not that of the archive: %+v", a)
		}
		return b
	}
	<-s.Leadership()
	apply(10)
	good := save()
	if again := save(); len(again) == 0 {
		t.Error("nothing new gives no archive")
	}
	apply(20)
	fine := func(io.Reader) error { return nil }
	for name, bad := range map[string][]byte{
		"no gzip":   []byte("what"),
		"cut off":   good[:len(good)/2],
		"cut short": good[:len(good)-4],
		"changed":   repack(t, good, func(name string, b []byte) []byte { return bytes.ReplaceAll(b, []byte{10}, []byte{99}) }),
		"renamed":   repack(t, good, nil),
	} {
		err := s.Restore(t.Context(), bytes.NewReader(bad), 1<<20, fine)
		if !fault.Is(err, fault.Invalid) || s.total() != 30 {
			t.Errorf("%s: %v, the sum is %d", name, err, s.total())
		}
	}
	if err := s.Restore(t.Context(), bytes.NewReader(good), 4, fine); !fault.Is(err, fault.TooLarge) {
		t.Errorf("more than is allowed: %v", err)
	}
	if err := s.Restore(t.Context(), bytes.NewReader(good), 1<<20, func(io.Reader) error { return errors.New("not ours") }); err == nil || s.total() != 30 {
		t.Errorf("a state that cannot be read: %v, the sum is %d", err, s.total())
	}
	if err := s.Restore(t.Context(), bytes.NewReader(good), 1<<20, fine); err != nil || s.total() != 10 {
		t.Fatalf("restore: %v, the sum is %d", err, s.total())
	}
	if !<-s.Leadership() {
		t.Error("a restore begins no new term")
	}
	apply(1)
	s.stop()
	s = alone(t, consensus.Config{Dir: dir})
	if s.total() != 11 {
		t.Errorf("after a restart the sum is %d, want 11", s.total())
	}
	left, err := filepath.Glob(filepath.Join(dir, "archive-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files stay: %v, %v", left, err)
	}
}

// repack rewrites an archive's files; a nil change renames them.
func repack(t *testing.T, in []byte, change func(name string, b []byte) []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	tw := tar.NewWriter(w)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, rerr := io.ReadAll(r)
		if err = errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		if change == nil {
			h.Name = "../" + h.Name
		} else if h.Name == "state.bin" {
			b = change(h.Name, b)
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSnapshotsByBytesKeepTheLogShort(t *testing.T) {
	dir := t.TempDir()
	s := alone(t, consensus.Config{Dir: dir, SnapshotBytes: 256 << 10})
	entry := append([]byte{1}, make([]byte, 4<<10)...)
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 100 {
				if _, _, err := s.Apply(t.Context(), entry); err != nil {
					t.Errorf("Apply: %v", err)
				}
			}
		})
	}
	writers.Wait()
	snapshots := func() []string {
		all, err := filepath.Glob(filepath.Join(dir, "snapshots", "*-*-*"))
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(all, func(p string) bool { return strings.HasSuffix(p, ".tmp") })
	}
	wait(t, "a snapshot", func() bool { return len(snapshots()) > 0 })
	// 3.2 MB were written, and of what is in the newest snapshot 256 KiB stay.
	wait(t, "the log is cut", func() bool {
		st := s.Stats()
		return st["last_snapshot_index"] > "0" && st["applied_index"] != ""
	})
	s.stop()
	start := time.Now()
	s = alone(t, consensus.Config{Dir: dir, SnapshotBytes: 256 << 10})
	if s.total() != 800 {
		t.Errorf("the sum is %d, want 800", s.total())
	}
	t.Logf("restarted within %v", time.Since(start))
}

func TestSnapshotsByAge(t *testing.T) {
	dir := t.TempDir()
	s := alone(t, consensus.Config{Dir: dir, SnapshotAge: time.Millisecond})
	if _, _, err := s.Apply(t.Context(), []byte{1}); err != nil {
		t.Fatal(err)
	}
	wait(t, "a snapshot", func() bool {
		n, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*", "meta.json"))
		return len(n) > 0
	})
}

func TestRecoveryByHand(t *testing.T) {
	// A server that was one of three, of which the others are gone for good.
	dir := t.TempDir()
	peers := []consensus.Peer{{ID: "one", Address: "one", Voter: true}, {ID: "two", Address: "two", Voter: true}, {ID: "three", Address: "three", Voter: true}}
	write := func(v any) {
		t.Helper()
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "peers.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := alone(t, consensus.Config{Dir: dir})
	if _, _, err := s.Apply(t.Context(), []byte{42}); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers[1:] {
		if err := s.Add(t.Context(), consensus.Peer{ID: p.ID, Address: p.Address}); err != nil { // without a vote, or it would lose its own majority at once
			t.Fatal(err)
		}
	}
	s.stop()
	write([]map[string]any{{"id": "other", "address": "other"}})
	r := consensus.New(consensus.Config{Dir: dir, ServerID: "one", Machine: &sum{}, SegmentBytes: 1 << 20})
	if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "does not list this server") {
		t.Errorf("a list without this server: %v", err)
	}
	write([]map[string]any{{"id": "one", "address": "one"}})
	s = alone(t, consensus.Config{Dir: dir})
	got, _, err := s.Peers()
	if err != nil || len(got) != 1 || s.total() != 42 {
		t.Errorf("after the recovery the peers are %v, %v and the sum is %d", got, err, s.total())
	}
	if _, err := os.Stat(filepath.Join(dir, "peers.json")); err == nil {
		t.Error("the list is still there and would be read again")
	}
}
