package state

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"

	"rockpool/internal/orchestrator/model"
)

// Watch collects what a read depends on. A nil Watch collects nothing.
type Watch = memdb.WatchSet

// NewWatch makes an empty one.
func NewWatch() Watch { return memdb.NewWatchSet() }

// Commit is one update as observers see it.
type Commit struct {
	Index   uint64
	Time    int64
	Kind    string // Nomad's name of the log entry, which is the type of its events
	Changes []Change
}

// Change is one object before and after; nil where there is none. The type is that of a table which is observed, such as
// *model.Job or *model.Allocation.
type Change struct {
	Before, After any
}

// Store holds the state. Only one goroutine may update or restore it.
type Store struct {
	db atomic.Pointer[memdb.MemDB]

	mu        sync.Mutex
	observers []*func(Commit) // guarded by mu; replaced, never changed
	replaced  chan struct{}   // guarded by mu; closed when a restore replaced the contents
}

// New makes an empty store.
func New() *Store {
	s := &Store{replaced: make(chan struct{})}
	s.db.Store(newDB())
	return s
}

func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic("state: the schema is broken: " + err.Error())
	}
	return db
}

// Observe has f called after each update, in order, on the goroutine that applies the log: f must be quick and must not block.
// The function returned ends it; a call under way may still be running then.
func (s *Store) Observe(f func(Commit)) (end func()) {
	p := &f
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observers = append(s.observers[:len(s.observers):len(s.observers)], p)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		var left []*func(Commit)
		for _, o := range s.observers {
			if o != p {
				left = append(left, o)
			}
		}
		s.observers = left
	}
}

// Snapshot is the state as it is now.
func (s *Store) Snapshot() *Snapshot {
	replaced := s.Replaced()
	return &Snapshot{txn: s.db.Load().Txn(false), replaced: replaced}
}

// Replaced is closed when a restore replaces the contents. It is asked for anew after each.
func (s *Store) Replaced() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replaced
}

// Index is the index of the newest update.
func (s *Store) Index() uint64 { return s.Snapshot().Index() }

// Update runs f in one transaction. An error of f leaves the store as it was.
func (s *Store) Update(index uint64, now int64, kind string, f func(*Tx) error) error {
	txn := s.db.Load().Txn(true)
	txn.TrackChanges()
	tx := &Tx{Snapshot: Snapshot{txn: txn}, index: index, now: now, touched: map[jobKey]bool{}}
	if err := f(tx); err != nil {
		txn.Abort()
		return err
	}
	tx.deriveStatuses()
	changes := txn.Changes()
	tx.count(changes)
	commit := Commit{Index: index, Time: now, Kind: kind}
	seen := map[string]bool{}
	for _, c := range changes {
		if !seen[c.Table] {
			seen[c.Table] = true
			tx.put(tableIndex, &tableState{c.Table, index})
		}
		if observed[c.Table] {
			commit.Changes = append(commit.Changes, Change{c.Before, c.After})
		}
	}
	tx.put(tableIndex, &tableState{"", index})
	txn.Commit()
	s.mu.Lock()
	observers := s.observers
	s.mu.Unlock()
	for _, o := range observers {
		(*o)(commit)
	}
	return nil
}

// Tx is an update under way. It reads what it has written.
type Tx struct {
	Snapshot
	index   uint64
	now     int64
	order   []jobKey // touched, in order
	touched map[jobKey]bool
}

// put inserts into a table of the schema, which can only fail when the schema and the types do not fit.
func (t *Tx) put(table string, v any) {
	if err := t.txn.Insert(table, v); err != nil {
		panic(fmt.Sprintf("state: insert into %s: %v", table, err))
	}
}

func (t *Tx) delete(table string, v any) {
	if err := t.txn.Delete(table, v); err != nil {
		panic(fmt.Sprintf("state: delete from %s: %v", table, err))
	}
}

func (t *Tx) touch(namespace, id string) {
	k := jobKey{namespace, id}
	if !t.touched[k] {
		t.touched[k] = true
		t.order = append(t.order, k)
	}
}

// deriveStatuses writes the status of each job that the update touched.
func (t *Tx) deriveStatuses() {
	for _, k := range t.order {
		j := t.Job(nil, k.namespace, k.id)
		if j == nil {
			continue
		}
		if s := t.status(j); s != j.Status {
			c := *j
			c.Status, c.ModifyIndex = s, t.index
			t.putJob(&c)
		}
	}
}

// status is running while an allocation is alive, else pending while an evaluation is, else dead once there was either. A
// job of which nothing is known yet is pending. A template of other jobs runs until it is stopped.
func (t *Tx) status(j *model.Job) string {
	if j.IsTemplate() {
		if j.Stop {
			return model.JobDead
		}
		return model.JobRunning
	}
	known := j.Stop
	for a := range t.AllocsByJob(nil, j.Namespace, j.ID) {
		if !a.Terminal() {
			return model.JobRunning
		}
		known = true
	}
	for e := range t.EvalsByJob(nil, j.Namespace, j.ID) {
		if !e.Terminal() {
			return model.JobPending
		}
		known = true
	}
	if j.Type == model.JobTypeSystem && !j.Stop {
		return model.JobRunning
	}
	if known {
		return model.JobDead
	}
	return model.JobPending
}

// Suppose is the state as it would be after f. The store stays as it is.
func (s *Store) Suppose(now int64, f func(*Tx) error) (*Snapshot, error) {
	s.mu.Lock()
	replaced := s.replaced
	s.mu.Unlock()
	db := s.db.Load().Snapshot()
	txn := db.Txn(true)
	tx := &Tx{Snapshot: Snapshot{txn: txn, replaced: replaced}, now: now, touched: map[jobKey]bool{}}
	tx.index = tx.Index() + 1
	if err := f(tx); err != nil {
		txn.Abort()
		return nil, err
	}
	tx.deriveStatuses()
	tx.put(tableIndex, &tableState{"", tx.index})
	txn.Commit()
	return &Snapshot{txn: db.Txn(false), replaced: replaced}, nil
}
