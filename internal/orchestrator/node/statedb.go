package node

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/model"
)

// taskRecord is what a later process of the agent needs to take a task back.
type taskRecord struct {
	Incarnation uint64 // counts starts, also failed ones; never goes back
	Driver      string // that was asked to start it
	Started     bool   // the driver has started this incarnation
	Restarts    restarts
	State       *model.TaskState
	Wholes      map[string]string `json:",omitempty"` // devices that its instances are parts of, by their ids
}

// stateDB keeps allocations and their task records in one file that is only ever appended to, so that an allocation costs a few short writes and no file of
// its own. The newest record of an allocation counts; when most of the file is of no use any more, what is left is written to a new one.
//
// Records are not synced: what a power failure takes from them it has taken from the machine too, and an allocation that ran and is not known here any
// more is reported as failed. A record that was cut off is the last one, and is dropped.
type stateDB struct {
	root string // for what drivers and logs keep of each allocation, in directories of their own
	path string

	mu    sync.Mutex
	file  *os.File
	size  int64            // of the file
	live  int64            // bytes of it that count
	at    map[string]place // newest records by allocation
	limit int64            // bytes of no use from which on the file is written anew; 0 = compactFrom
	after int64            // size below which that is not tried again, as it has failed
	torn  bool             // there may be a part of a piece behind size

	failed func(error) // is told why the file could not be written anew; nil = nobody is

	writer *stateWriter // nil before the file is open; set by read alone
}

// place is where an allocation's newest records are.
type place struct{ alloc, tasks span }

type span struct{ at, n int64 }

// compactFrom is how many bytes must be of no use before the file is written anew.
const compactFrom = 8 << 20

// line is one record; exactly one of the last three is set.
type line struct {
	ID    string
	Alloc *model.Allocation      `json:",omitempty"`
	Tasks map[string]*taskRecord `json:",omitempty"`
	Gone  bool                   `json:",omitempty"`
}

// damaged finds whose record it was that cannot be read.
var damaged = regexp.MustCompile(`^.{9}\{"ID":"([A-Za-z0-9-]+)"`)

func newStateDB(dir string) *stateDB {
	return &stateDB{root: filepath.Join(dir, "allocs"), path: filepath.Join(dir, "allocs.log"), at: map[string]place{}}
}

// saved is one allocation as an earlier process left it.
type saved struct {
	alloc *model.Allocation
	tasks map[string]*taskRecord
}

// taskDir is private to one task of an allocation.
func (db *stateDB) taskDir(alloc, task string) string {
	return filepath.Join(db.dir(alloc), "task-"+url.PathEscape(task))
}

// dir is what is kept of an allocation beside its records.
func (db *stateDB) dir(alloc string) string { return filepath.Join(db.root, alloc) }

// files is the allocation's directory as clients see it.
func (db *stateDB) files(alloc string) string { return filepath.Join(db.dir(alloc), "files") }

func (db *stateDB) saveAlloc(a *model.Allocation) error {
	if err := db.writer.append(line{ID: a.ID, Alloc: a}); err != nil {
		return fmt.Errorf("keep allocation: %w", err)
	}
	return nil
}

func (db *stateDB) saveTasks(alloc string, tasks map[string]*taskRecord) error {
	if err := db.writer.append(line{ID: alloc, Tasks: tasks}); err != nil {
		return fmt.Errorf("keep task states: %w", err)
	}
	return nil
}

// get reads what is kept of an allocation.
func (db *stateDB) get(alloc string) (s saved, err error) {
	records, err := db.records(alloc)
	if err != nil {
		return s, fmt.Errorf("read state: %w", err)
	}
	for _, b := range records {
		l, ok := decode(b)
		if !ok || l.ID != alloc {
			return s, fmt.Errorf("read state: %s is damaged", db.path)
		}
		if l.Alloc != nil {
			s.alloc = l.Alloc
		} else {
			s.tasks = l.Tasks
		}
	}
	if s.alloc == nil || s.alloc.Job == nil {
		return s, errors.New("read state: there is no record of the allocation itself")
	}
	return s, nil
}

// records are those of an allocation as they were written. They are decoded by who asks: everybody who writes waits meanwhile.
func (db *stateDB) records(alloc string) (all [][]byte, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	p, ok := db.at[alloc]
	if !ok || db.file == nil {
		return nil, errors.New("there is no record")
	}
	for _, at := range []span{p.alloc, p.tasks} {
		if at.n == 0 {
			continue
		}
		b := make([]byte, at.n)
		if _, err := db.file.ReadAt(b, at.at); err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// remove forgets an allocation and all that is kept of it.
func (db *stateDB) remove(alloc string) error {
	if err := os.RemoveAll(db.dir(alloc)); err != nil {
		return fmt.Errorf("remove allocation directory: %w", err)
	}
	if err := db.writer.append(line{ID: alloc, Gone: true}); err != nil {
		return fmt.Errorf("forget allocation: %w", err)
	}
	return nil
}

func decode(b []byte) (l line, ok bool) {
	if len(b) < 10 || b[8] != ' ' {
		return l, false
	}
	sum, err := strconv.ParseUint(string(b[:8]), 16, 32)
	b = b[9:]
	if b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	if err != nil || uint32(sum) != crc32.ChecksumIEEE(b) {
		return l, false
	}
	return l, json.Unmarshal(b, &l) == nil && l.ID != ""
}

// note takes over where a record is.
func (db *stateDB) note(l line, s span) {
	p := db.at[l.ID]
	switch {
	case l.Gone:
		db.live -= p.alloc.n + p.tasks.n
		delete(db.at, l.ID)
		return
	case l.Alloc != nil:
		db.live += s.n - p.alloc.n
		p.alloc = s
	default:
		db.live += s.n - p.tasks.n
		p.tasks = s
	}
	db.at[l.ID] = p
}

// compact writes what counts to a new file, which then takes the old one's place whole.
func (db *stateDB) compact() (err error) {
	f, err := os.OpenFile(db.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("compact state: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("compact state: %w", err)
		}
	}()
	out, size := bufio.NewWriterSize(f, 1<<20), int64(0)
	moved := make(map[string]place, len(db.at))
	move := func(s span) (span, error) {
		if s.n == 0 {
			return s, nil
		}
		n, err := io.Copy(out, io.NewSectionReader(db.file, s.at, s.n))
		to := span{size, n}
		size += n
		return to, err
	}
	for id, p := range db.at {
		if p.alloc, err = move(p.alloc); err != nil {
			return err
		}
		if p.tasks, err = move(p.tasks); err != nil {
			return err
		}
		moved[id] = p
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), db.path); err != nil {
		return err
	}
	_ = db.file.Close()
	db.file, db.size, db.live, db.at, db.after, db.torn = f, size, size, moved, 0, false
	return nil
}

// load opens the state and reads all allocations, those too that an earlier release kept in another way. Those whose records cannot be used are listed as
// broken.
func (db *stateDB) load() (all []saved, broken []string, err error) {
	all, broken, unknown, err := db.read()
	if err != nil {
		return nil, nil, err
	}
	for _, id := range unknown {
		s, ok := db.takeOver(id)
		if !ok { // a directory without a record is of an allocation whose record was lost
			broken = append(broken, id)
			continue
		}
		if err := db.adopt(s); err != nil {
			return nil, nil, err
		}
		all = append(all, s)
	}
	return all, broken, nil
}

// read reads the file. Unknown are the allocations that have a directory, or task states, and no record of their own.
func (db *stateDB) read() (all []saved, broken, unknown []string, err error) {
	if err := os.MkdirAll(db.root, 0o700); err != nil {
		return nil, nil, nil, fmt.Errorf("open allocation directory: %w", err)
	}
	f, err := os.OpenFile(db.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open state: %w", err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.file, db.size, db.live, db.at = f, 0, 0, map[string]place{}
	found, lost := map[string]*saved{}, map[string]bool{}
	var order []string
	for lines := bufio.NewReaderSize(f, 1<<20); ; {
		b, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, nil, fmt.Errorf("read state: %w", err)
		}
		if errors.Is(err, io.EOF) {
			break // what is left was cut off
		}
		s := span{db.size, int64(len(b))}
		db.size += s.n
		l, ok := decode(b)
		if !ok { // what a damaged record said is not known: its allocation counts as lost
			id := damaged.FindSubmatch(b)
			if id == nil {
				return nil, nil, nil, fmt.Errorf("read state: %s is damaged at byte %d: remove it to start without the allocations of this node, which then count as lost", db.path, s.at)
			}
			delete(found, string(id[1]))
			lost[string(id[1])] = true
			continue
		}
		db.note(l, s)
		if l.Gone {
			delete(found, l.ID)
			delete(lost, l.ID)
			continue
		}
		if lost[l.ID] {
			continue
		}
		if found[l.ID] == nil {
			found[l.ID] = &saved{tasks: map[string]*taskRecord{}}
			order = append(order, l.ID)
		}
		if l.Alloc != nil {
			found[l.ID].alloc = l.Alloc
		} else {
			found[l.ID].tasks = l.Tasks
		}
	}
	if err := f.Truncate(db.size); err != nil {
		return nil, nil, nil, fmt.Errorf("read state: %w", err)
	}
	db.writer = newStateWriter(db)
	db.writer.start()
	for _, id := range order {
		s := found[id]
		delete(found, id) // an id can be in order twice
		switch {
		case s == nil:
		case s.alloc == nil:
			unknown = append(unknown, id)
		case s.alloc.Job == nil || s.alloc.ID != id:
			broken = append(broken, id)
		default:
			all = append(all, *s)
		}
	}
	for id := range lost {
		broken = append(broken, id)
	}
	entries, err := os.ReadDir(db.root)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read allocation directory: %w", err)
	}
	for _, e := range entries {
		if _, ok := db.at[e.Name()]; !ok && !lost[e.Name()] {
			unknown = append(unknown, e.Name())
		}
	}
	return all, broken, unknown, nil
}

// close lets go of the file, once what was given to it is written.
func (db *stateDB) close() error {
	db.writer.end()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.file == nil {
		return nil
	}
	err := db.file.Close()
	db.file = nil
	return err
}

// safeID reports whether an allocation id may be a directory's name.
func safeID(id string) bool { return ident.ValidName(id) }
