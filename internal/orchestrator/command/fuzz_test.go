package command_test

import (
	"bytes"
	"fmt"
	"testing"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/state"
)

// grown is a state with one of each thing, the same each time.
func grown(tb testing.TB) (*state.Store, uint64) {
	tb.Helper()
	s, index := state.New(), uint64(0)
	for _, e := range log() {
		index++
		data, err := command.Encode(e)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := command.Apply(s, index, data); err != nil {
			tb.Fatal(err)
		}
	}
	return s, index
}

// applied is what becomes of an entry: its result, an error, or a panic, as text.
func applied(s *state.Store, index uint64, data []byte) (what string, panicked bool) {
	defer func() {
		if p := recover(); p != nil {
			what, panicked = fmt.Sprintf("panic: %v", p), true
		}
	}()
	r, err := command.Apply(s, index, data)
	return fmt.Sprintf("%T %v", r, err), false
}

// FuzzEntries applies what no server of ours would propose. All servers must make the same of it: the same result and the same state, or the same end. What is
// applied can be kept and read back.
func FuzzEntries(f *testing.F) {
	for _, e := range log() {
		data, err := command.Encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 1, 0xdf, 0xff, 0xff, 0xff, 0xff})                                                                         // a map of 2^32
	f.Add([]byte{3, 1, 0x81, 0xa6, 'C', 'r', 'e', 'a', 't', 'e', 0xdd, 0xff, 0xff, 0xff, 0xff})                               // a list of 2^32
	f.Add([]byte{6, 1, 0x81, 0xa7, 'A', 'l', 'l', 'o', 'c', 'I', 'D', 0xdb, 0xff, 0xff, 0xff, 0xff})                          // a text of 2^32
	f.Add(append([]byte{1, 1}, bytes.Repeat([]byte{0x91}, 2_000)...))                                                         // depth
	f.Add(append([]byte{1, 1, 0x81, 0xa3, 'J', 'o', 'b', 0x81, 0xa4, 'M', 'e', 't', 'a'}, bytes.Repeat([]byte{0x81}, 50)...)) // keys that are maps
	f.Fuzz(func(t *testing.T, data []byte) {
		one, index := grown(t)
		two, _ := grown(t)
		first, dead := applied(one, index+1, data)
		second, _ := applied(two, index+1, bytes.Clone(data))
		if first != second {
			t.Fatalf("one server: %s, another: %s", first, second)
		}
		if dead {
			return // it has ended, on all servers alike
		}
		h1, err := one.Hash()
		if err != nil {
			t.Fatalf("the state cannot be kept: %v", err)
		}
		if h2, err := two.Hash(); err != nil || h1 != h2 {
			t.Fatalf("the states differ: %s, %s, %v", h1, h2, err)
		}
		var kept bytes.Buffer
		if err := one.Snapshot().Persist(&kept); err != nil {
			t.Fatal(err)
		}
		back := state.New()
		if err := back.Restore(&kept); err != nil {
			t.Fatalf("what was kept cannot be read back: %v", err)
		}
		if h3, err := back.Hash(); err != nil || h3 != h1 {
			t.Fatalf("what is read back differs: %s, %s, %v", h1, h3, err)
		}
	})
}

// FuzzSnapshots restores what no server of ours has written: it is refused and the state stays as it was, or it is a state that can be kept and read back.
func FuzzSnapshots(f *testing.F) {
	s, _ := grown(f)
	var whole bytes.Buffer
	if err := s.Snapshot().Persist(&whole); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Bytes())
	f.Add(whole.Bytes()[:whole.Len()/2])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0x91}, 2_000))
	f.Add([]byte{2, 0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{2, 0x81, 0xa2, 'I', 'D', 0xdb, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _ := grown(t)
		before, err := s.Hash()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Restore(bytes.NewReader(data)); err != nil {
			if after, herr := s.Hash(); herr != nil || after != before {
				t.Fatalf("refused with %v, and yet the state is another: %v", err, herr)
			}
			return
		}
		after, err := s.Hash()
		if err != nil {
			t.Fatal(err)
		}
		var kept bytes.Buffer
		if err := s.Snapshot().Persist(&kept); err != nil {
			t.Fatal(err)
		}
		back := state.New()
		if err := back.Restore(&kept); err != nil {
			t.Fatalf("what was kept cannot be read back: %v", err)
		}
		if again, err := back.Hash(); err != nil || again != after {
			t.Fatalf("what is read back differs: %v", err)
		}
	})
}
