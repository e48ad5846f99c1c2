package state

import (
	"slices"
	"sync"
	"sync/atomic"

	"rockpool/internal/orchestrator/model"
)

// Commit is one update as observers see it.
type Commit struct {
	Index   uint64
	Time    int64
	Kind    string // Nomad's name of the log entry, which is the type of its events; that of an entry of many is its own
	Changes []Change
}

// Change is one object before and after; nil where there is none. The type is that of a table which is observed, such as
// *model.Job or *model.Allocation.
type Change struct {
	Before, After any
	Kind          string // of the entry, or of the one among many, that changed it
}

// Store holds the state. Only one goroutine may update or restore it.
type Store struct {
	db atomic.Pointer[database]

	mu        sync.Mutex
	observers []*func(Commit) // guarded by mu; replaced, never changed
	replaced  chan struct{}   // guarded by mu; closed when a restore replaced the contents
}

// New makes an empty store.
func New() *Store {
	s := &Store{replaced: make(chan struct{})}
	s.db.Store(newDatabase())
	return s
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
	return &Snapshot{txn: s.db.Load().read(), replaced: replaced}
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
	return s.UpdateAll(index, now, kind, []Step{{now, kind, f}})[0]
}

// Step is one part of an update.
type Step struct {
	Now  int64
	Kind string
	// Do may be called again from the beginning, after all that it wrote has been undone.
	Do func(*Tx) error
}

// UpdateAll runs steps one after the other in one transaction, each as if it were an update of its own: its statuses are derived when it has run, and
// one that fails changes nothing. It returns what each came to. An update in which all failed leaves the store as it was, its index too.
func (s *Store) UpdateAll(index uint64, now int64, kind string, steps []Step) []error {
	failed := make([]error, len(steps))
	for {
		tx, again := s.try(index, steps, failed)
		if again {
			continue
		}
		if !slices.Contains(failed, nil) {
			return failed
		}
		s.commit(tx, Commit{Index: index, Time: now, Kind: kind, Changes: tx.left()})
		return failed
	}
}

// try runs the steps that have not failed. One that fails after it has written something spoils the transaction: it is undone, and tried again without.
func (s *Store) try(index uint64, steps []Step, failed []error) (tx *Tx, again bool) {
	tx = newTx(Snapshot{txn: s.db.Load().write()}, index)
	for i, step := range steps {
		if failed[i] != nil {
			continue
		}
		tx.begin(step.Now, step.Kind)
		if err := step.Do(tx); err != nil {
			failed[i] = err
			if tx.wrote {
				return nil, true
			}
			continue
		}
		tx.deriveStatuses()
		tx.withdrawServices()
	}
	return tx, false
}

func (s *Store) commit(tx *Tx, c Commit) {
	tx.count()
	tx.countNamespaces()
	for _, table := range sortedKeys(tx.tables) {
		tx.insert(tableIndex, &tableState{table, tx.index})
	}
	tx.insert(tableIndex, &tableState{"", tx.index})
	tx.txn.commit()
	s.mu.Lock()
	observers := s.observers
	s.mu.Unlock()
	for _, o := range observers {
		(*o)(c)
	}
}

// Tx is an update under way. It reads what it has written.
type Tx struct {
	Snapshot
	index   uint64
	changes []Change        // of observed tables
	at      map[any]int     // where in changes an object is that this step has written
	tables  map[string]bool // written

	// Of the step under way.
	now     int64
	kind    string
	wrote   bool
	first   int               // of its changes
	order   []jobKey          // touched, in order
	touched map[jobKey]string // an allocation of the job that was alive when it was written; empty = none is known
}

func newTx(s Snapshot, index uint64) *Tx {
	return &Tx{Snapshot: s, index: index, touched: map[jobKey]string{}, tables: map[string]bool{}, at: map[any]int{}}
}

// At is the index of the update.
func (t *Tx) At() uint64 { return t.index }

func (t *Tx) begin(now int64, kind string) {
	t.now, t.kind, t.wrote, t.first, t.order = now, kind, false, len(t.changes), nil
	t.touched, t.at = emptied(t.touched), emptied(t.at)
}

// emptied is a map for the next part of an update. To clear one takes as long as it was ever large, and many small parts follow a large one.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	const small = 32
	if len(m) > small {
		return map[K]V{}
	}
	clear(m)
	return m
}

// put inserts into a table.
func (t *Tx) put(table string, v any) {
	no := tableNo(table)
	t.note(table)
	if before := t.txn.put(no, v); tables[no].observed {
		t.changed(before, v)
	}
}

// insert is put of what nobody observes and no update's change is made of.
func (t *Tx) insert(table string, v any) { t.txn.put(tableNo(table), v) }

func (t *Tx) delete(table string, v any) {
	no := tableNo(table)
	if tables[no].observed {
		t.changed(v, nil)
	}
	t.note(table)
	t.txn.delete(no, v)
}

func (t *Tx) note(table string) {
	t.wrote = true
	t.tables[table] = true
}

// left is the changes without the places that were left empty.
func (t *Tx) left() []Change {
	return slices.DeleteFunc(t.changes, func(c Change) bool { return c.Before == nil && c.After == nil })
}

// changed keeps one change of each object and step: from what there was before the step to what there is after it, at the place of its last change.
func (t *Tx) changed(before, after any) {
	c := Change{Before: before, After: after, Kind: t.kind}
	if i, ok := t.at[before]; ok && before != nil {
		c.Before = t.changes[i].Before
		t.changes[i] = Change{} // see left
		delete(t.at, before)
		if c.Before == nil && after == nil {
			return
		}
	}
	if after != nil {
		t.at[after] = len(t.changes)
	}
	t.changes = append(t.changes, c)
}

func (t *Tx) touch(namespace, id string) {
	k := jobKey{namespace, id}
	if _, known := t.touched[k]; !known {
		t.touched[k] = ""
		t.order = append(t.order, k)
	}
}

// touchAlloc is touch of the job of an allocation that was written.
func (t *Tx) touchAlloc(a *model.Allocation) {
	t.touch(a.Namespace, a.JobID)
	if !a.Terminal() {
		t.touched[jobKey{a.Namespace, a.JobID}] = a.ID
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
	if id := t.touched[jobKey{j.Namespace, j.ID}]; id != "" { // mostly it still is, and spares a walk over all others
		if a := t.Alloc(nil, id); a != nil && a.Namespace == j.Namespace && a.JobID == j.ID && !a.Terminal() {
			return model.JobRunning
		}
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
	txn := s.db.Load().write()
	tx := newTx(Snapshot{txn: txn, replaced: replaced}, 0)
	tx.index = tx.Index() + 1
	tx.begin(now, "")
	if err := f(tx); err != nil {
		return nil, err
	}
	tx.deriveStatuses()
	tx.insert(tableIndex, &tableState{"", tx.index})
	txn.sealed() // it only reads from here on
	return &Snapshot{txn: txn, replaced: replaced}, nil
}
