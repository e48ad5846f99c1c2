package node

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
)

func stateAlloc(id string, index uint64) *model.Allocation {
	g := &model.TaskGroup{Name: "group", Tasks: []*model.Task{{Name: "a", Driver: "mock", Config: map[string]any{"run_for": "1s"}}}}
	return &model.Allocation{ID: id, JobID: "job", Job: &model.Job{ID: "job", TaskGroups: []*model.TaskGroup{g}}, TaskGroup: "group", ModifyIndex: index}
}

// openState opens the state that is kept in a directory.
func openState(t testing.TB, dir string) *stateDB {
	t.Helper()
	db := newStateDB(dir)
	if _, _, err := db.load(); err != nil {
		t.Fatal(err)
	}
	return db
}

// content is what a state says that nobody has open, as plain values.
func content(t interface{ Fatal(...any) }, db *stateDB) (map[string][2]uint64, []string) {
	all, broken, err := db.load()
	if err = errors.Join(err, db.close()); err != nil {
		t.Fatal(err)
	}
	out := map[string][2]uint64{}
	for _, s := range all {
		out[s.alloc.ID] = [2]uint64{s.alloc.ModifyIndex, incarnation(s.tasks)}
	}
	return out, broken
}

func TestTheStateIsWhatWasWrittenLast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "state")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		open := func() *stateDB {
			db := newStateDB(dir)
			db.limit = 2000 // so that it is written anew now and then
			return db
		}
		db := open()
		if _, _, err := db.load(); err != nil {
			t.Fatal(err)
		}
		want := map[string][2]uint64{}
		for step := range uint64(rapid.IntRange(1, 60).Draw(t, "steps")) {
			id := rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "id")
			had, known := want[id]
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				err, want[id] = db.saveAlloc(stateAlloc(id, step)), [2]uint64{step, had[1]}
			case 2, 3:
				if known {
					err, want[id] = db.saveTasks(id, map[string]*taskRecord{"a": {Incarnation: step}}), [2]uint64{had[0], step}
				}
			case 4:
				err = db.remove(id)
				delete(want, id)
			default: // as a process that ends in the middle of a record
				if err := db.close(); err != nil {
					t.Fatal(err)
				}
				f, ferr := os.OpenFile(db.path, os.O_APPEND|os.O_WRONLY, 0)
				if ferr != nil {
					t.Fatal(ferr)
				}
				_, _ = f.WriteString(rapid.SampledFrom([]string{"", "0", `00000000 {"ID":"one"`}).Draw(t, "torn"))
				_ = f.Close()
				db = open()
				_, _, err = db.load()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if waste := db.size - db.live; waste > 4000 && waste > 2*db.live {
			t.Fatalf("%d bytes, %d of which count", db.size, db.live)
		}
		if err := db.close(); err != nil {
			t.Fatal(err)
		}
		got, broken := content(t, open())
		if !maps.Equal(got, want) || len(broken) > 0 {
			t.Fatalf("%v, broken %v, want %v", got, broken, want)
		}
	})
}

func TestADamagedRecordLosesItsAllocationAlone(t *testing.T) {
	dir := t.TempDir()
	db := openState(t, dir)
	for _, id := range []string{"one", "two"} {
		if err := db.saveAlloc(stateAlloc(id, 1)); err != nil {
			t.Fatal(err)
		}
	}
	at := db.at["one"].alloc
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(db.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("X"), at.at+at.n/2); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	got, broken := content(t, newStateDB(dir))
	if len(got) != 1 || got["two"] != [2]uint64{1, 0} || len(broken) != 1 || broken[0] != "one" {
		t.Errorf("%v, broken %v", got, broken)
	}
}

// BenchmarkState is the cost of an allocation's life on disk: it comes, its task changes four times, it goes.
func BenchmarkState(b *testing.B) {
	db := openState(b, b.TempDir())
	defer db.close()
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprint("alloc-", i)
		err := db.saveAlloc(stateAlloc(id, 1))
		for k := range uint64(4) {
			if err == nil {
				err = db.saveTasks(id, map[string]*taskRecord{"a": {Incarnation: k, State: &model.TaskState{State: model.TaskRunning}}})
			}
		}
		if err == nil {
			err = db.remove(id)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// Records are written also while there is no room to write the file anew, which is tried again when it has grown.
func TestAStateThatCannotBeWrittenAnewGoesOn(t *testing.T) {
	db := openState(t, t.TempDir())
	defer db.close()
	told := 0
	db.limit, db.failed = 2000, func(error) { told++ }
	if err := os.Mkdir(db.path+".new", 0o700); err != nil { // in its way
		t.Fatal(err)
	}
	a := &model.Allocation{ID: "one", Job: &model.Job{ID: "job"}}
	save := func(n int) {
		t.Helper()
		for i := range n {
			a.ModifyIndex = uint64(i)
			if err := db.saveAlloc(a); err != nil {
				t.Fatal(err)
			}
		}
	}
	save(100)
	grown := db.size
	if s, err := db.get("one"); err != nil || s.alloc.ModifyIndex != 99 {
		t.Errorf("%+v, %v", s.alloc, err)
	}
	if told == 0 || told > int(grown/db.limit) {
		t.Errorf("told %d times of %d bytes", told, grown)
	}
	if err := os.Remove(db.path + ".new"); err != nil {
		t.Fatal(err)
	}
	save(100)
	if db.size >= grown {
		t.Errorf("%d bytes, and %d before", db.size, grown)
	}
}

// What several save at once is written together, each once, and what comes after the end is refused.
func TestRecordsAreWrittenTogetherAndAnsweredEach(t *testing.T) {
	dir := t.TempDir()
	db := openState(t, dir)
	const writers, each = 16, 50
	errs := make(chan error, writers+1)
	for i := range writers {
		go func() {
			id := fmt.Sprint("alloc-", i)
			err := db.saveAlloc(stateAlloc(id, 1))
			for k := range uint64(each) {
				if err == nil {
					err = db.saveTasks(id, map[string]*taskRecord{"a": {Incarnation: k + 1}})
				}
				if s, gerr := db.get(id); err == nil && (gerr != nil || incarnation(s.tasks) != k+1) {
					err = fmt.Errorf("%s after %d: %+v, %w", id, k+1, s.tasks, gerr)
				}
			}
			errs <- err
		}()
	}
	odd := stateAlloc("odd", 1)
	odd.Job.TaskGroups[0].Tasks[0].Config["no JSON"] = func() {}
	if err := db.saveAlloc(odd); err == nil {
		t.Error("what is not JSON was written")
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	if err := db.saveAlloc(stateAlloc("late", 1)); !errors.Is(err, errStateClosed) {
		t.Errorf("a state that is closed: %v", err)
	}
	got, broken := content(t, newStateDB(dir))
	if len(got) != writers || len(broken) > 0 {
		t.Errorf("%v, broken %v", got, broken)
	}
	for id, v := range got {
		if v != [2]uint64{1, each} {
			t.Errorf("%s: %v", id, v)
		}
	}
}

// idleWriter gives an open state a writer that has not begun to write.
func idleWriter(db *stateDB) *stateWriter {
	db.writer.end()
	db.writer = newStateWriter(db)
	return db.writer
}

// handOver gives a writer that does not look at its queue n records more, and returns when they are in it.
func handOver(db *stateDB, prefix string, n int) (errs chan error) {
	errs = make(chan error, n)
	for i := range n {
		go func() { errs <- db.saveAlloc(stateAlloc(fmt.Sprint(prefix, i), 1)) }()
	}
	until(db.writer, func(w *stateWriter) bool { return len(w.queue) == n })
	return errs
}

func until(w *stateWriter, is func(*stateWriter) bool) {
	for {
		w.mu.Lock()
		ok := is(w)
		w.mu.Unlock()
		if ok {
			return
		}
		runtime.Gosched()
	}
}

// What was given to a state is written before it is closed.
func TestWhatWasHandedOverIsWrittenBeforeTheEnd(t *testing.T) {
	dir := t.TempDir()
	db := openState(t, dir)
	const each = 5
	w := idleWriter(db)
	first := handOver(db, "first-", each)
	db.mu.Lock() // it waits to write those
	w.start()
	until(w, func(w *stateWriter) bool { return len(w.queue) == 0 })
	second := handOver(db, "second-", each)
	closed := make(chan error, 1)
	go func() { closed <- db.close() }()
	until(w, func(w *stateWriter) bool { return w.ended })
	db.mu.Unlock()
	for range each {
		if err := errors.Join(<-first, <-second); err != nil {
			t.Error(err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if got, broken := content(t, newStateDB(dir)); len(got) != 2*each || len(broken) > 0 {
		t.Errorf("%v, broken %v", got, broken)
	}
}

// A piece that cannot be written is refused to all whose records are in it, and nothing of it is left.
func TestAPieceThatCannotBeWrittenIsNoRecord(t *testing.T) {
	dir := t.TempDir()
	db := openState(t, dir)
	if err := db.saveAlloc(stateAlloc("one", 1)); err != nil {
		t.Fatal(err)
	}
	whole := db.file
	const records = 5
	w := idleWriter(db)
	errs := handOver(db, "alloc-", records)
	var err error
	if db.file, err = os.Open(db.path); err != nil { // to read alone
		t.Fatal(err)
	}
	w.start()
	for range records {
		if err := <-errs; err == nil {
			t.Error("it was written")
		}
	}
	db.mu.Lock()
	_ = db.file.Close()
	db.file = whole
	if !db.torn { // nothing can be cut off a file to read alone
		t.Error("nothing says that something may be behind the end")
	}
	// What such a piece could have left: whole records, and a half.
	if _, err := whole.WriteAt([]byte("00000000 {}\n00000000 {}\n00000000 {\"ID\":"), db.size+1); err != nil {
		t.Error(err)
	}
	db.mu.Unlock()
	if err := db.saveAlloc(stateAlloc("two", 3)); err != nil {
		t.Error(err)
	}
	if err := db.close(); err != nil {
		t.Error(err)
	}
	got, broken := content(t, newStateDB(dir))
	if want := map[string][2]uint64{"one": {1, 0}, "two": {3, 0}}; !maps.Equal(got, want) || len(broken) > 0 {
		t.Errorf("%v, broken %v, want %v", got, broken, want)
	}
}
