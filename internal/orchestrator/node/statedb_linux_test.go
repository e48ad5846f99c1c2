package node

import (
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"
)

// A record for which there is no room takes none of those along that are in one piece with it.
func TestARecordWithoutRoomFailsAlone(t *testing.T) {
	db := openState(t, t.TempDir())
	defer db.close()
	db.writer.end()
	w := newStateWriter(db) // which the test runs itself
	small, large := &unwritten{line: line{ID: "small", Alloc: stateAlloc("small", 1)}, done: make(chan error, 1)}, &unwritten{line: line{ID: "large", Alloc: stateAlloc("large", 2)}, done: make(chan error, 1)}
	for _, u := range []*unwritten{large, small} {
		if err := w.encode(u); err != nil {
			t.Fatal(err)
		}
		w.ready = append(w.ready, u)
	}
	room := int64(w.out.Len()) - 1 // for each, and not for both
	var before, limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit = unix.Rlimit{Cur: uint64(room), Max: before.Max}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	w.write()
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	first, second := <-large.done, <-small.done
	if first != nil || second == nil {
		t.Errorf("the first: %v, the second: %v", first, second)
	}
	if s, err := db.get("large"); err != nil || s.alloc.ModifyIndex != 2 {
		t.Errorf("%+v, %v", s.alloc, err)
	}
	if db.size != large.n {
		t.Errorf("%d bytes, and the record that fits has %d", db.size, large.n)
	}
}
