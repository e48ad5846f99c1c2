package state

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
)

// The tables' contents are B-trees that share what a change did not touch: a version is never changed, and the next one copies the nodes on the way to what is
// new, once for each transaction. A table's primary tree has the objects; its other indexes have only keys, which end with the primary one, so that a change
// of an object costs only those whose keys it changes.

// degree of the trees: a node has up to 2*degree-1 items. Larger ones make reads quicker, smaller ones a transaction that changes one object.
const degree = 16

// keyParts appends the parts of an object's key; nil = the object is not in the index.
type keyParts func(v any, to []string) []string

// index is one order of a table's objects besides the primary one.
type index struct {
	name  string
	parts keyParts
}

// table is the shape of one table.
type table struct {
	name string
	id   keyParts
	more []index // by name

	// share makes texts of an object that is put those of its primary key, of the one that it replaces (nil = none) or of others, which equal them: they are
	// one in memory then. It must not change what they say, as the keys are made already. nil = it does without.
	share func(t *txn, v, before any, key string)
}

// item is an object in a primary tree.
type item struct {
	head uint64 // what key begins with: it mostly decides, and is where the comparison looks anyway
	key  string
	v    any
}

func itemOf(key string, v any) item {
	var head [8]byte
	copy(head[:], key)
	return item{binary.BigEndian.Uint64(head[:]), key, v}
}

func (a item) less(b item) bool {
	if a.head != b.head {
		return a.head < b.head
	}
	return a.key < b.key
}

// entry is a place in another index: key[id:] is the object's primary key.
type entry struct {
	key string
	id  int
}

// trees are one table's contents.
type trees struct {
	items *btree.BTreeG[item]
	more  []*btree.BTreeG[entry]
}

// version is the contents of all tables at one moment.
type version struct {
	number uint64 // counts the commits of one database
	tables []trees
}

// database has the newest version, and tells who watches of the next.
type database struct {
	newest  atomic.Pointer[txn] // only reads
	cloning sync.Mutex          // held while a published tree is cloned, which writes to it what its readers do not read
	gates   []gates             // by table
}

func newDatabase() *database {
	d := &database{gates: make([]gates, len(tables))}
	v := version{tables: make([]trees, len(tables))}
	for i, t := range tables {
		v.tables[i].items = btree.NewG(degree, item.less)
		for range t.shape.more {
			v.tables[i].more = append(v.tables[i].more, btree.NewG(degree, func(a, b entry) bool { return a.key < b.key }))
		}
	}
	d.newest.Store(&txn{db: d, at: v})
	return d
}

// read is the view of the newest version, which is the same for all, write begins a change of it. Only one change at a time may be committed; others must be left
// to the collector.
func (d *database) read() *txn { return d.newest.Load() }

func (d *database) write() *txn {
	t := &txn{db: d, at: d.read().at}
	t.at.tables = slices.Clone(t.at.tables)
	t.own = make([]uint64, len(t.at.tables))
	t.walks = make([]int, len(t.at.tables))
	t.marks = map[int]*marks{}
	t.parts, t.were = make([]string, 0, 4), make([]string, 0, 4)
	return t
}

// txn is a view of one version; one that writes sees what it has written. Once it is committed it is the view of all who read, and is never written to.
type txn struct {
	db    *database
	at    version
	own   []uint64 // by table, a bit for each tree that is this transaction's: 1 = the primary one; nil = it only reads
	walks []int    // by table, walks under way
	marks map[int]*marks

	// Where the keys of one put are made: it allocates what it keeps of them.
	parts, were []string
	key         []byte
	places      []place

	evalID string // see shareAlloc
}

// place is where the new key of an object in another index is among all that are made for it: own is what of it comes before the primary one.
type place struct{ index, begin, end, own int }

// commit makes what was written the newest version, and then wakes who watches what has changed.
func (t *txn) commit() {
	t.at.number++
	marked := t.marks
	t.sealed()
	t.db.newest.Store(t)
	for i, m := range marked {
		t.db.gates[i].fire(m, t.at.number)
	}
}

// sealed makes it a view that only reads.
func (t *txn) sealed() { *t = txn{db: t.db, at: t.at} }

// items is a table's primary tree for writing, entries one of its others. A walk under way keeps the one that it began on.
func (t *txn) items(no int) *btree.BTreeG[item] {
	of := &t.at.tables[no]
	if t.walks[no] > 0 {
		t.own[no] = 0
	}
	if t.own[no]&1 == 0 {
		if t.own[no] == 0 {
			of.more = slices.Clone(of.more)
		}
		t.own[no] |= 1
		t.db.cloning.Lock()
		of.items = of.items.Clone()
		t.db.cloning.Unlock()
	}
	return of.items
}

func (t *txn) entries(no, i int) *btree.BTreeG[entry] {
	of := &t.at.tables[no]
	if bit := uint64(2) << i; t.own[no]&bit == 0 {
		t.own[no] |= bit
		t.db.cloning.Lock()
		of.more[i] = of.more[i].Clone()
		t.db.cloning.Unlock()
	}
	return of.more[i]
}

// put inserts an object in place of the one with the same primary key, which it returns. The new keys are one piece of memory, and the primary one stays that of
// the first object that had it.
func (t *txn) put(no int, v any) (before any) {
	shape := &tables[no].shape
	m := t.mark(no)
	t.key = appendKey(t.key[:0], shape.id(v, t.parts[:0]))
	m.add(0, t.key)
	id, there := len(t.key), 0
	items := t.items(no)
	old, replaced := items.Get(itemOf(string(t.key), nil))
	if replaced {
		there = id
	}
	t.places = t.places[:0]
	for i := range shape.more {
		parts := shape.more[i].parts(v, t.parts[:0])
		begin := len(t.key)
		if replaced {
			were := shape.more[i].parts(old.v, t.were[:0])
			if were != nil && parts != nil && slices.Equal(were, parts) {
				t.key = appendKey(t.key, parts)
				m.add(i+1, t.key[begin:])
				t.key = t.key[:begin]
				continue
			}
			t.remove(no, i, m, were, old.key)
		}
		if parts != nil {
			t.key = appendKey(t.key, parts)
			m.add(i+1, t.key[begin:])
			own := len(t.key) - begin
			t.key = append(t.key, t.key[:id]...)
			t.places = append(t.places, place{i, begin - there, len(t.key) - there, own})
		}
	}
	keys := string(t.key[there:])
	if !replaced {
		old.key = keys[:id]
	}
	if shape.share != nil {
		shape.share(t, v, old.v, old.key)
	}
	items.ReplaceOrInsert(itemOf(old.key, v))
	for _, p := range t.places {
		t.entries(no, p.index).ReplaceOrInsert(entry{keys[p.begin:p.end], p.own})
	}
	return old.v
}

// remove takes the object with the primary key out of an index. What t.key has stays.
func (t *txn) remove(no, i int, m *marks, parts []string, key string) {
	if parts != nil {
		begin := len(t.key)
		t.key = appendKey(t.key, parts)
		m.add(i+1, t.key[begin:])
		t.key = append(t.key, key...)
		t.entries(no, i).Delete(entry{key: string(t.key[begin:])})
		t.key = t.key[:begin]
	}
}

// delete removes the object with the primary key of v, and returns it; nil = there is none.
func (t *txn) delete(no int, v any) (before any) {
	shape := &tables[no].shape
	t.key = appendKey(t.key[:0], shape.id(v, t.parts[:0]))
	key := string(t.key)
	old, ok := t.items(no).Delete(itemOf(key, nil))
	if !ok {
		return nil
	}
	m := t.mark(no)
	m.add(0, t.key)
	for i := range shape.more {
		t.remove(no, i, m, shape.more[i].parts(old.v, t.parts[:0]), key)
	}
	return old.v
}

// first is the object of a primary key, or nil.
func (t *txn) first(no int, parts []string) any {
	found, _ := t.at.tables[no].items.Get(itemOf(join(parts), nil))
	return found.v
}

// span is a part of one index: the keys that begin so, or with from set those that are not less than it.
type span struct {
	table, index int // index 0 = the primary one
	key          string
	from         bool
}

func (t *txn) walk(s span) iter.Seq[any] {
	return func(yield func(any) bool) {
		if t.walks != nil {
			t.walks[s.table]++
			defer func() { t.walks[s.table]-- }()
		}
		of := t.at.tables[s.table]
		if s.index == 0 {
			of.items.AscendGreaterOrEqual(itemOf(s.key, nil), func(i item) bool {
				return (s.from || strings.HasPrefix(i.key, s.key)) && yield(i.v)
			})
			return
		}
		of.more[s.index-1].AscendGreaterOrEqual(entry{key: s.key}, func(e entry) bool {
			return (s.from || strings.HasPrefix(e.key, s.key)) && yield(of.at(e))
		})
	}
}

// backwards walks all of an index that is not the primary one.
func (t *txn) backwards(no, i int) iter.Seq[any] {
	return func(yield func(any) bool) {
		if t.walks != nil {
			t.walks[no]++
			defer func() { t.walks[no]-- }()
		}
		of := t.at.tables[no]
		of.more[i-1].Descend(func(e entry) bool { return yield(of.at(e)) })
	}
}

// at is the object of an entry. The trees of one table belong together.
func (t *trees) at(e entry) any {
	found, ok := t.items.Get(itemOf(e.key[e.id:], nil))
	if !ok {
		panic(fmt.Sprintf("state: an index has %q, which its table has not", e.key))
	}
	return found.v
}

// watch is closed when a commit after this version changes the object of a key, or one that is or was in an index under these leading parts of its key.
// It may be closed for another's change as well. "" = anything of the table.
func (t *txn) watch(s span) <-chan struct{} {
	return t.db.gates[s.table].arm(s.index, s.key, t.at.number)
}

// Keys are lists of strings, each ended by a NUL, so that no list is a prefix of another.
func appendKey(to []byte, parts []string) []byte {
	for _, p := range parts {
		to = append(append(to, p...), 0)
	}
	return to
}

func join(parts []string) string {
	var buf [128]byte
	return string(appendKey(buf[:0], parts))
}

// Watches of single keys share this many channels a table: what wakes one may wake others, which look and wait again.
const shards = 256

// gates are the channels of one table's watches.
type gates struct {
	mu     sync.Mutex
	table  gate         // guarded by mu
	shards [shards]gate // guarded by mu
}

type gate struct {
	changed uint64        // number of the newest version that changed what it stands for
	ch      chan struct{} // nil = nobody waits
}

var (
	seed = maphash.MakeSeed()
	open = func() chan struct{} { ch := make(chan struct{}); close(ch); return ch }()
)

// shardOf takes the hash of a key with this process's seed.
func shardOf(index int, hash uint64) int { return int((hash + uint64(index)*0x9e3779b9) % shards) }

func (g *gates) arm(index int, key string, seen uint64) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := &g.table
	if key != "" {
		w = &g.shards[shardOf(index, maphash.String(seed, key))]
	}
	if w.changed > seen {
		return open
	}
	if w.ch == nil {
		w.ch = make(chan struct{})
	}
	return w.ch
}

func (w *gate) fire(number uint64) {
	w.changed = number
	if w.ch != nil {
		close(w.ch)
		w.ch = nil
	}
}

func (g *gates) fire(m *marks, number uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.table.fire(number)
	for i := range g.shards {
		if m[i/64]&(1<<(i%64)) != 0 {
			g.shards[i].fire(number)
		}
	}
}

// marks says which shards a transaction has changed.
type marks [shards / 64]uint64

func (t *txn) mark(no int) *marks {
	m := t.marks[no]
	if m == nil {
		m = new(marks)
		t.marks[no] = m
	}
	return m
}

// add marks all lists of leading parts of a key.
func (m *marks) add(index int, key []byte) {
	for i := range len(key) {
		if key[i] == 0 {
			s := shardOf(index, maphash.Bytes(seed, key[:i+1]))
			m[s/64] |= 1 << (s % 64)
		}
	}
}

// Watch collects what a read depends on. A nil Watch collects nothing.
type Watch map[<-chan struct{}]struct{}

// NewWatch makes an empty one.
func NewWatch() Watch { return Watch{} }

// WatchCtx waits until something of it may have changed, or ctx ends, whose error it returns then.
func (w Watch) WatchCtx(ctx context.Context) error {
	cases := make([]reflect.SelectCase, 1, len(w)+1)
	cases[0] = reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}
	for ch := range w {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ch)})
	}
	if i, _, _ := reflect.Select(cases); i == 0 {
		return ctx.Err()
	}
	return nil
}
