package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"rockpool/internal/orchestrator/model"
)

// Files of an allocation's directory in which earlier releases kept its records.
const (
	oldAlloc = "alloc.json"
	oldTasks = "tasks.json"
)

// takeOver reads an allocation as earlier releases kept it, in a directory of its own. False means that there is no such record.
func (db *stateDB) takeOver(id string) (s saved, ok bool) {
	var a model.Allocation
	if err := readJSON(filepath.Join(db.dir(id), oldAlloc), &a); err != nil || a.ID != id || a.Job == nil {
		return s, false
	}
	s = saved{alloc: &a, tasks: map[string]*taskRecord{}}
	if err := readJSON(filepath.Join(db.dir(id), oldTasks), &s.tasks); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, false
	}
	return s, true
}

// adopt keeps what was taken over where records are kept now. The allocation is written last: without it, a later process does the same again.
func (db *stateDB) adopt(s saved) error {
	id := s.alloc.ID
	if len(s.tasks) > 0 {
		if err := db.saveTasks(id, s.tasks); err != nil {
			return err
		}
	}
	if err := db.saveAlloc(s.alloc); err != nil {
		return err
	}
	for _, name := range []string{oldTasks, oldAlloc} {
		if err := os.Remove(filepath.Join(db.dir(id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take over allocation %s: %w", id, err)
		}
	}
	return nil
}
