package command

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
)

// ErrUnknown is wrapped by Apply for an entry that this program cannot know. The log must not be applied any further.
var ErrUnknown = errors.New("the log holds an entry that this version does not know")

// row is one kind of entry.
type row struct {
	Tag     byte
	Version byte
	Name    string // of the events that it causes; Nomad's
	Type    reflect.Type
	apply   func(s *state.Store, index uint64, data []byte) (any, error)
	step    func(index uint64, data []byte, result *any) (state.Step, error)
	key     func(entry any) string // see Batchable; nil = entries of this kind stand alone
}

// define makes a row. apply runs inside one transaction; its error is the proposer's result and leaves the state as it was. It may be run again from the
// beginning, after what it wrote has been undone.
func define[T any](tag byte, name string, apply func(*state.Tx, *T) (any, error)) row {
	r := row{Tag: tag, Version: 1, Name: name, Type: reflect.TypeFor[T]()}
	r.step = func(index uint64, data []byte, result *any) (state.Step, error) {
		decode := func() (*T, error) {
			e := new(T)
			if err := decodeEntry(data, e); err != nil {
				return nil, fmt.Errorf("%w: entry %d, tag %d, cannot be decoded: %w", ErrUnknown, index, tag, err)
			}
			return e, nil
		}
		e, err := decode()
		if err != nil {
			return state.Step{}, err
		}
		return state.Step{Now: nowOf(e), Kind: name, Do: func(tx *state.Tx) (err error) {
			if e == nil { // the state has kept parts of the first
				if e, err = decode(); err != nil {
					return err
				}
			}
			*result, err = apply(tx, e)
			e = nil
			return err
		}}, nil
	}
	r.apply = func(s *state.Store, index uint64, data []byte) (any, error) {
		var result any
		step, err := r.step(index, data, &result)
		if err != nil {
			return nil, err
		}
		if err := s.Update(index, step.Now, step.Kind, step.Do); err != nil {
			return err, nil
		}
		return result, nil
	}
	return r
}

// decodeEntry reads an entry in the way that it has of its own, or in the one of all.
func decodeEntry(data []byte, e any) error {
	if own, ok := e.(interface{ read(data []byte) error }); ok {
		return own.read(data)
	}
	return packed.Decode(data, e)
}

func nowOf(e any) int64 { return e.(interface{ at() int64 }).at() }

// table is all entries. Tags are on disk: never renumber, never use one again. It is filled in at start, since a batch looks into the table.
var (
	table  []row
	byTag  = map[byte]row{}
	byType = map[reflect.Type]row{}
)

func init() {
	table = slices.Concat(core, batches, dense, servers, access, life)
	for _, r := range table {
		if _, ok := byTag[r.Tag]; ok {
			panic(fmt.Sprintf("command: tag %d is used twice", r.Tag))
		}
		byTag[r.Tag], byType[r.Type] = r, r
	}
}

// typeOf is the type that a pointer to an entry points to.
func typeOf(entry any) reflect.Type { return reflect.TypeOf(entry).Elem() }

// Encode makes the log's form of an entry, which is a pointer to one of this package's entry structs.
func Encode(entry any) ([]byte, error) {
	r, ok := byType[typeOf(entry)]
	if !ok {
		return nil, fmt.Errorf("encode: %T is no log entry", entry)
	}
	b, err := packed.Append([]byte{r.Tag, versionOf(entry)}, entry)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", entry, err)
	}
	return b, nil
}

// Apply applies one entry. The result is what the entry's row returns, which may be an error for the proposer. The error is
// for the server: it must stop.
func Apply(s *state.Store, index uint64, data []byte) (result any, err error) {
	r, err := rowOf(index, data)
	if err != nil {
		return nil, err
	}
	return r.apply(s, index, data[2:])
}

func rowOf(index uint64, data []byte) (row, error) {
	if len(data) < 2 {
		return row{}, fmt.Errorf("%w: entry %d has %d bytes", ErrUnknown, index, len(data))
	}
	r, ok := byTag[data[0]]
	if !ok {
		return row{}, fmt.Errorf("%w: entry %d has tag %d", ErrUnknown, index, data[0])
	}
	if data[1] == 0 || data[1] > r.Version {
		return row{}, fmt.Errorf("%w: entry %d, tag %d, has version %d, known are 1 to %d", ErrUnknown, index, data[0], data[1], r.Version)
	}
	return r, nil
}
