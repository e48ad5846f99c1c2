package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"rockpool/internal/orchestrator/model"
)

// older writes an allocation as releases before the one file did.
func older(t *testing.T, db *stateDB, a *model.Allocation, tasks map[string]*taskRecord) {
	t.Helper()
	if err := os.MkdirAll(db.taskDir(a.ID, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(db.dir(a.ID), "alloc.json"), a, false); err != nil {
		t.Fatal(err)
	}
	if tasks != nil {
		if err := writeJSON(filepath.Join(db.dir(a.ID), "tasks.json"), tasks, false); err != nil {
			t.Fatal(err)
		}
	}
}

// incarnation is that of task a; 0 = it has none.
func incarnation(tasks map[string]*taskRecord) uint64 {
	if r := tasks["a"]; r != nil {
		return r.Incarnation
	}
	return 0
}

func TestAllocationsOfAnEarlierReleaseAreTakenOverOnce(t *testing.T) {
	dir := t.TempDir()
	db := newStateDB(dir)
	older(t, db, stateAlloc("one", 7), map[string]*taskRecord{"a": {Incarnation: 3, Started: true, Driver: "mock"}})
	older(t, db, stateAlloc("two", 8), nil)
	if err := os.MkdirAll(db.dir("odd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(db.dir("odd"), "alloc.json"), []byte(`{"ID":"one"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string][2]uint64{"one": {7, 3}, "two": {8, 0}}
	for range 3 { // the second and third time from the file
		all, broken, err := db.load()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][2]uint64{}
		for _, s := range all {
			got[s.alloc.ID] = [2]uint64{s.alloc.ModifyIndex, incarnation(s.tasks)}
		}
		if len(got) != 2 || got["one"] != want["one"] || got["two"] != want["two"] || !slices.Equal(broken, []string{"odd"}) {
			t.Fatalf("%v, broken %v", got, broken)
		}
		if _, err := os.Stat(filepath.Join(db.dir("one"), "alloc.json")); !os.IsNotExist(err) {
			t.Errorf("the old record is still there: %v", err)
		}
		if _, err := os.Stat(db.taskDir("one", "a")); err != nil {
			t.Errorf("what the driver keeps is gone: %v", err)
		}
		if err := db.close(); err != nil {
			t.Fatal(err)
		}
		db = newStateDB(dir)
	}
}

func TestATakeoverThatWasInterruptedIsDoneAgain(t *testing.T) {
	dir := t.TempDir()
	db := newStateDB(dir)
	older(t, db, stateAlloc("one", 7), map[string]*taskRecord{"a": {Incarnation: 3}})
	if _, _, _, err := db.read(); err != nil {
		t.Fatal(err)
	}
	if err := db.saveTasks("one", map[string]*taskRecord{"a": {Incarnation: 3}}); err != nil { // and there it ended
		t.Fatal(err)
	}
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	if got, broken := content(t, newStateDB(dir)); got["one"] != [2]uint64{7, 3} || len(broken) != 0 {
		t.Errorf("%v, broken %v", got, broken)
	}
}

func TestWhatWasBuriedIsNotTakenOver(t *testing.T) {
	dir := t.TempDir()
	db := newStateDB(dir)
	older(t, db, stateAlloc("one", 7), nil)
	if _, _, err := db.load(); err != nil {
		t.Fatal(err)
	}
	if err := db.remove("one"); err != nil {
		t.Fatal(err)
	}
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	if got, broken := content(t, newStateDB(dir)); len(got)+len(broken) != 0 {
		t.Errorf("%v, broken %v", got, broken)
	}
}
