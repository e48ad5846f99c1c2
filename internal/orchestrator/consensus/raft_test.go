package consensus_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/consensus"
)

// sum is a machine that adds bytes up.
type sum struct {
	mu    sync.Mutex
	total uint64
}

func (s *sum) Apply(_ uint64, entry []byte) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch entry[0] {
	case 0xff:
		return nil, errors.New("what is this")
	case 0xfe:
		return errors.New("refused"), nil
	}
	s.total += uint64(entry[0])
	return s.total, nil
}

func (s *sum) Snapshot() func(io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := binary.BigEndian.AppendUint64(nil, s.total)
	return func(w io.Writer) error { _, err := w.Write(b); return err }
}

func (s *sum) Restore(r io.Reader) error {
	b := make([]byte, 8)
	_, err := io.ReadFull(r, b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total = binary.BigEndian.Uint64(b)
	return err
}

func run(t *testing.T, dir string) (r *consensus.Raft, stop func() error) {
	t.Helper()
	return begin(consensus.Config{Dir: dir, ServerID: "one", Machine: &sum{}, SegmentBytes: 1 << 20})
}

// begin runs a server until stop, and returns once it leads.
func begin(cfg consensus.Config) (r *consensus.Raft, stop func() error) {
	r = consensus.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { result <- r.Run(ctx) })
	for lead := range r.Leadership() {
		if lead {
			break
		}
	}
	return r, func() error { cancel(); wg.Wait(); return <-result }
}

func TestWhatWasAppliedIsThereAfterARestart(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	r, stop := run(t, dir)
	var last uint64
	for i := range 20 {
		got, index, err := r.Apply(t.Context(), []byte{1})
		if err != nil || got != uint64(i+1) || index <= last {
			t.Fatalf("apply %d gave %v at %d, %v", i, got, index, err)
		}
		last = index
		if i == 10 {
			if err := r.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, index, err := r.Apply(t.Context(), []byte{0xfe}); err == nil || index <= last || err.Error() != "refused" {
		t.Errorf("a refused entry gave %d, %v", index, err)
	}
	second := consensus.New(consensus.Config{Dir: dir, ServerID: "one", Machine: &sum{}})
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second server on the same directory got %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Apply(t.Context(), []byte{1}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("after the end Apply gave %v", err)
	}
	r, stop = run(t, dir)
	if err := r.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _, err := r.Apply(t.Context(), []byte{1}); err != nil || got != uint64(21) {
		t.Errorf("after the restart it is %v, %v", got, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestAnEntryThatIsNotKnownStopsTheServer(t *testing.T) {
	defer goleak.VerifyNone(t)
	r, stop := run(t, "")
	if _, _, err := r.Apply(t.Context(), []byte{0xff}); err == nil {
		t.Error("no error")
	}
	if _, _, err := r.Apply(t.Context(), []byte{1}); err == nil {
		t.Error("it goes on")
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "what is this") {
		t.Errorf("Run returned %v", err)
	}
}

func TestApplyHonoursItsContext(t *testing.T) {
	defer goleak.VerifyNone(t)
	r, stop := run(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if _, _, err := r.Apply(ctx, []byte{1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// endless is a machine whose snapshots are never done.
type endless struct {
	sum
	begun chan struct{}
	once  sync.Once
}

func (e *endless) Snapshot() func(io.Writer) error {
	return func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 16)); err != nil {
				return err
			}
			e.once.Do(func() { close(e.begun) })
		}
	}
}

func TestAServerEndsInTheMiddleOfASnapshot(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := &endless{begun: make(chan struct{})}
	r := consensus.New(consensus.Config{ServerID: "one", Machine: m})
	ctx, cancel := context.WithCancel(context.Background())
	result, written := make(chan error, 1), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { result <- r.Run(ctx) })
	for lead := range r.Leadership() {
		if lead {
			break
		}
	}
	if _, _, err := r.Apply(t.Context(), []byte{1}); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { written <- r.Snapshot() })
	<-m.begun
	cancel()
	wg.Wait()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-written; err == nil {
		t.Error("a snapshot that was given up counts as written")
	}
}

// slow is a machine whose snapshots wait until they may be written.
type slow struct {
	sum
	begun   chan struct{} // of 1
	write   chan struct{} // closed when they may
	written atomic.Int32
}

func (s *slow) Snapshot() func(io.Writer) error {
	persist := s.sum.Snapshot()
	return func(w io.Writer) error {
		select {
		case s.begun <- struct{}{}:
		default:
		}
		<-s.write
		s.written.Add(1)
		return persist(w)
	}
}

// However many entries come while a snapshot is written, one more is due after it, and not one for each.
func TestOneSnapshotIsAskedForAtATime(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := &slow{begun: make(chan struct{}, 1), write: make(chan struct{})}
	r, stop := begin(consensus.Config{ServerID: "one", Machine: m, SnapshotBytes: 4})
	entry := func() {
		t.Helper()
		if _, _, err := r.Apply(t.Context(), []byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		entry()
	}
	<-m.begun
	for range 100 {
		entry()
	}
	close(m.write)
	if err := r.Snapshot(); err != nil { // it waits for its turn behind the others
		t.Fatal(err)
	}
	if n := m.written.Load(); n > 3 {
		t.Errorf("%d snapshots were written", n)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}
