package msgpack

import (
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// What is remembered of one type. The forms of a type's values are short, and most of those that come within seconds are few.
const (
	mostShared    = 512      // values in each of two generations
	longestShared = 16 << 10 // bytes of the form of one that is
	allShared     = 1 << 20  // bytes of all forms of a generation
)

// Shared makes values that are read one after the other from equal forms one value in memory. Thousands of jobs have the same task group, which is most of what a job takes
// and of what its decoding takes. Nobody may change what comes out. The zero value is ready for use by many.
//
// What has not been asked for lately is forgotten: there are two generations, and the older one goes when the younger is full.
type Shared[T any] struct {
	mu         sync.Mutex
	young, old map[string]*T // guarded by mu; by form
	bytes      int           // guarded by mu; of the young ones' forms
}

// Decode is the value of a form. It panics with the error of a form that is none, as a codec.Selfer has to.
func (s *Shared[T]) Decode(form codec.Raw) *T {
	if v := s.known(form); v != nil {
		return v
	}
	v := new(T)
	if err := Decode(form, v); err != nil {
		panic(err)
	}
	if len(form) <= longestShared {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.remember(string(form), v)
	}
	return v
}

func (s *Shared[T]) known(form []byte) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.young[string(form)]; v != nil {
		return v
	}
	v := s.old[string(form)]
	if v != nil {
		s.remember(string(form), v)
	}
	return v
}

func (s *Shared[T]) remember(form string, v *T) {
	if s.young == nil || len(s.young) >= mostShared || s.bytes+len(form) > allShared {
		s.old, s.young, s.bytes = s.young, map[string]*T{}, 0
	}
	s.young[form] = v
	s.bytes += len(form)
}

// Changed is the form of a value that is not what it was read as any more, which somebody has changed: for tests. nil = there is none.
func (s *Shared[T]) Changed() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, generation := range []map[string]*T{s.old, s.young} {
		for form, v := range generation {
			if now, err := Append(nil, v); err != nil || string(now) != form {
				return []byte(form), err
			}
		}
	}
	return nil, nil
}
