package fabric_test

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"rockpool/internal/orchestrator/sim/fabric"
)

func logs(from, to uint64) (out []*raft.Log) {
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: 1, Data: []byte{byte(i)}})
	}
	return out
}

func TestACrashKeepsWhatWasWrittenAndAtMostABeginningOfTheRest(t *testing.T) {
	seen := map[uint64]bool{}
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			d := fabric.NewDisk(seed)
			if err := errors.Join(d.StoreLogs(logs(1, 3)), d.SetUint64([]byte("term"), 7)); err != nil {
				t.Fatal(err)
			}
			d.Slow(time.Second)
			var wg sync.WaitGroup
			wg.Go(func() { _ = d.StoreLogs(logs(4, 6)) })
			synctest.Wait()
			next := d.Crash()
			wg.Wait()
			if err := d.StoreLogs(logs(7, 9)); err != nil {
				t.Fatal(err)
			}
			last, _ := next.LastIndex()
			if last < 3 || last > 6 {
				t.Errorf("the log ends at %d", last)
			}
			for i := uint64(1); i <= last; i++ {
				var l raft.Log
				if err := next.GetLog(i, &l); err != nil || l.Data[0] != byte(i) {
					t.Errorf("entry %d is %v, %v", i, l, err)
				}
			}
			if v, _ := next.GetUint64([]byte("term")); v != 7 {
				t.Errorf("the term is %d", v)
			}
			seen[last] = true
		})
	}
	if len(seen) != 4 {
		t.Errorf("crashes left logs that end at %v only", seen)
	}
}

func TestAFullDiskTakesNothingAndAfterwardsAgain(t *testing.T) {
	d := fabric.NewDisk(1)
	d.Fill(true)
	if err := d.StoreLogs(logs(1, 1)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk said %v", err)
	}
	d.Fill(false)
	if err := d.StoreLogs(logs(1, 9)); err != nil {
		t.Fatal(err)
	}
	_ = d.DeleteRange(1, 3)
	_ = d.DeleteRange(8, 9)
	first, _ := d.FirstIndex()
	if last, _ := d.LastIndex(); first != 4 || last != 7 {
		t.Errorf("the log is %d to %d", first, last)
	}
	if _, err := d.Get([]byte("x")); err == nil || err.Error() != "not found" {
		t.Errorf("a value that is not there gives %v", err)
	}
}

func TestASnapshotCountsOnceItIsClosed(t *testing.T) {
	d := fabric.NewDisk(1)
	for i := range uint64(3) {
		s, err := d.Create(1, i+1, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write([]byte{byte(i)})
		if before, _ := d.Crash().List(); len(before) != min(int(i), 2) {
			t.Errorf("a snapshot that is not complete is there: %v", before)
		}
		_ = s.Close()
	}
	list, _ := d.List()
	if len(list) != 2 || list[0].Index != 3 || list[1].Index != 2 {
		t.Fatalf("the snapshots are %v", list)
	}
	_, r, err := d.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := io.ReadAll(r); len(data) != 1 || data[0] != 2 {
		t.Errorf("the newest holds %v", data)
	}
}
