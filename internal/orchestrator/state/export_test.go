package state

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"rockpool/internal/orchestrator/model"
)

// CheckTrees is an error that says where an index is not that of its table's objects, or where the id of a job, an evaluation or an allocation is not the text of
// its key.
func (s *Snapshot) CheckTrees() error {
	for no, t := range tables {
		of := s.txn.at.tables[no]
		want := make([][]string, len(t.shape.more))
		var wrong error
		of.items.Ascend(func(i item) bool {
			key := join(t.shape.id(i.v, nil))
			if i.key != key || i.head != itemOf(key, nil).head {
				wrong = fmt.Errorf("%s: %q is at %q", t.shape.name, key, i.key)
				return false
			}
			if id := idOf(t.shape.name, i.v); id != "" {
				if at := strings.LastIndex(i.key, id); at < 0 || unsafe.StringData(i.key[at:]) != unsafe.StringData(id) {
					wrong = fmt.Errorf("%s: the id of %q is a text of its own", t.shape.name, i.key)
					return false
				}
			}
			for n, index := range t.shape.more {
				if parts := index.parts(i.v, nil); parts != nil {
					want[n] = append(want[n], join(parts)+"|"+key)
				}
			}
			return true
		})
		if wrong != nil {
			return wrong
		}
		for n, index := range t.shape.more {
			var got []string
			of.more[n].Ascend(func(e entry) bool {
				got = append(got, e.key[:e.id]+"|"+e.key[e.id:])
				return true
			})
			slices.Sort(want[n])
			slices.Sort(got)
			if !slices.Equal(want[n], got) {
				return fmt.Errorf("%s: index %s has %q, not %q", t.shape.name, index.name, got, want[n])
			}
		}
	}
	return nil
}

func idOf(table string, v any) string {
	switch o := v.(type) {
	case *model.Job:
		if table == tableJobs { // versions have that of the job's key
			return o.ID
		}
	case *model.Evaluation:
		return o.ID
	case *model.Allocation:
		return o.ID
	case *Tombstone:
		return o.AllocID
	}
	return ""
}

// WalkedStatus is the status of a job by a walk over all that it has.
func (s *Snapshot) WalkedStatus(j *model.Job) string { return (&Tx{Snapshot: *s}).status(j) }
