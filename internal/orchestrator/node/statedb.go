package node

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

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
}

// stateDB keeps allocations and their task records in one directory each. Files are replaced whole. They are not synced: what
// a power failure takes from them it has taken from the machine too, and an allocation that ran and is not known here any
// more is reported as failed.
type stateDB struct{ root string }

// saved is one allocation as an earlier process left it.
type saved struct {
	alloc *model.Allocation
	tasks map[string]taskRecord
}

func (db stateDB) dir(alloc string) string { return filepath.Join(db.root, alloc) }

// taskDir is private to one task of an allocation.
func (db stateDB) taskDir(alloc, task string) string {
	return filepath.Join(db.dir(alloc), "task-"+url.PathEscape(task))
}

func (db stateDB) saveAlloc(a *model.Allocation) error {
	if err := os.MkdirAll(db.dir(a.ID), 0o700); err != nil {
		return fmt.Errorf("keep allocation: %w", err)
	}
	if err := writeJSON(filepath.Join(db.dir(a.ID), "alloc.json"), a, false); err != nil {
		return fmt.Errorf("keep allocation: %w", err)
	}
	return nil
}

func (db stateDB) saveTasks(alloc string, tasks map[string]taskRecord) error {
	if err := writeJSON(filepath.Join(db.dir(alloc), "tasks.json"), tasks, false); err != nil {
		return fmt.Errorf("keep task states: %w", err)
	}
	return nil
}

func (db stateDB) remove(alloc string) error {
	if err := os.RemoveAll(db.dir(alloc)); err != nil {
		return fmt.Errorf("remove allocation directory: %w", err)
	}
	return nil
}

// load reads all allocations. Those whose files cannot be read are listed as broken.
func (db stateDB) load() (all []saved, broken []string, err error) {
	if err := os.MkdirAll(db.root, 0o700); err != nil {
		return nil, nil, fmt.Errorf("open allocation directory: %w", err)
	}
	entries, err := os.ReadDir(db.root)
	if err != nil {
		return nil, nil, fmt.Errorf("read allocation directory: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		var a model.Allocation
		if err := readJSON(filepath.Join(db.dir(id), "alloc.json"), &a); err != nil || a.ID != id || a.Job == nil {
			broken = append(broken, id)
			continue
		}
		s := saved{alloc: &a, tasks: map[string]taskRecord{}}
		err := readJSON(filepath.Join(db.dir(id), "tasks.json"), &s.tasks)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			broken = append(broken, id)
			continue
		}
		all = append(all, s)
	}
	return all, broken, nil
}

// safeID reports whether an allocation id may be a directory's name.
func safeID(id string) bool { return ident.ValidName(id) }
