package command

import (
	"fmt"

	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
)

// Batch is many entries in one: one append to the log, one transaction. Each is applied as if it stood alone, in order; one that fails changes nothing and
// does not keep the others from being applied. All share one index, so only such entries may share a batch as Batchable lets: two writes of one object
// would otherwise look like one to whoever compares indexes. The result is a []any, one for each, an error standing for a refusal.
type Batch struct {
	Now     int64
	Entries [][]byte // each as it would stand on the log alone
}

func (e *Batch) at() int64 { return e.Now }

const batchTag = 106

// batches has the one entry that is made of others, and so is applied in its own way.
var batches = []row{func() row {
	r := define[Batch](batchTag, "Batch", nil)
	r.apply = applyBatch
	return r
}()}

func applyBatch(s *state.Store, index uint64, data []byte) (any, error) {
	var b Batch
	if err := packed.Decode(data, &b); err != nil {
		return nil, fmt.Errorf("%w: entry %d, a batch, cannot be decoded: %w", ErrUnknown, index, err)
	}
	results := make([]any, len(b.Entries))
	steps := make([]state.Step, len(b.Entries))
	for i, data := range b.Entries {
		r, err := rowOf(index, data)
		if err != nil {
			return nil, err
		}
		if r.key == nil {
			return nil, fmt.Errorf("%w: entry %d, tag %d, must stand alone and is in a batch", ErrUnknown, index, r.Tag)
		}
		if steps[i], err = r.step(index, data[2:], &results[i]); err != nil {
			return nil, err
		}
	}
	for i, err := range s.UpdateAll(index, b.Now, "Batch", steps) {
		if err != nil {
			results[i] = err
		}
	}
	return results, nil
}

// Batchable reports whether an entry may share a Batch with others, and the name of the object that no other entry of the same batch may write;
// "" = it writes nothing that is compared by index.
func Batchable(entry any) (key string, ok bool) {
	r, known := byType[typeOf(entry)]
	if !known || r.key == nil {
		return "", false
	}
	return r.key(entry), true
}

// batchable lets entries of a row share a batch. key is Batchable's.
func batchable[T any](r row, key func(*T) string) row {
	r.key = func(entry any) string { return key(entry.(*T)) }
	return r
}

// nothing is the key of entries that write nothing that is compared by index.
func nothing[T any](*T) string { return "" }

func jobName(namespace, id string) string { return "job\x00" + namespace + "\x00" + id }
