package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// mend makes good what raft-wal v0.4.0 leaves behind and cannot open, or cannot write to, afterwards. Nothing of the log is lost by it:
//
//   - a log that was shortened at its end, as a follower's is when a new leader has other entries, has its last file closed without the index that reading it takes
//     after a restart. The index is written to the end of the file;
//   - a crash between the write that fills a file and the note that it is full, or within that write, leaves a last file that takes no more entries. The note is made
//     up for, and a next file begun.
//
// It is called before the log is opened.
func mend(dir string, meta types.MetaStore) error {
	state, err := meta.Load(dir)
	if err != nil {
		return fmt.Errorf("read the description of the log: %w", err)
	}
	files := segment.NewFiler(dir, walfs.New())
	changed := false
	for i := range state.Segments {
		s := &state.Segments[i]
		last := i == len(state.Segments)-1
		if s.IndexStart != 0 || s.SealTime.IsZero() && !last {
			continue
		}
		done, err := mendFile(dir, files, s)
		if err != nil {
			return fmt.Errorf("mend %s: %w", segment.FileName(*s), err)
		}
		changed = changed || done
		if done && last {
			next := s.MaxIndex + 1
			state.Segments = append(state.Segments, types.SegmentInfo{
				ID: state.NextSegmentID, BaseIndex: next, MinIndex: next, Codec: s.Codec, SizeLimit: s.SizeLimit, CreateTime: time.Now(),
			})
			state.NextSegmentID++
		}
	}
	if !changed {
		return nil
	}
	if err := meta.CommitState(state); err != nil {
		return fmt.Errorf("write the description of the log: %w", err)
	}
	return nil
}

// mendFile completes what is known of one file. False = there is nothing to do.
func mendFile(dir string, files *segment.Filer, s *types.SegmentInfo) (done bool, err error) {
	open, path := *s, filepath.Join(dir, segment.FileName(*s))
	open.MinIndex, open.MaxIndex, open.SealTime = s.BaseIndex, 0, time.Time{} // as the last file is opened, with all its entries
	w, err := files.RecoverTail(open)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // it was noted, but not made before a crash
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	full, at, err := w.Sealed() // true also where the index was written in part
	last := w.LastIndex()
	switch closed := !s.SealTime.IsZero(); {
	case err != nil:
		return false, err
	case !closed && !full:
		return false, nil // the last file, which takes more
	case closed && last < s.MaxIndex:
		return false, fmt.Errorf("entries up to %d should be there, and the last one is %d", s.MaxIndex, last)
	case closed:
		last = s.MaxIndex
	case last < s.BaseIndex:
		return false, os.Remove(path) // nothing in it was ever written whole: it is made anew
	}
	places, ok := w.(interface {
		OffsetForFrame(index uint64) (uint32, error)
	})
	if !ok {
		return false, errors.New("the file does not tell where its entries are")
	}
	index := make([]byte, 0, 4*(last-s.BaseIndex+1))
	for i := s.BaseIndex; i <= last; i++ {
		place, err := places.OffsetForFrame(i)
		if err != nil {
			return false, fmt.Errorf("find entry %d: %w", i, err)
		}
		index = binary.LittleEndian.AppendUint32(index, place)
	}
	if s.IndexStart, err = keep(path, index, at); err != nil {
		return false, err
	}
	if s.SealTime.IsZero() {
		s.SealTime, s.MaxIndex = time.Now(), last
	}
	return true, nil
}

// keep makes sure that an index is in a file, and returns where: at the place where it may be already, unless that is 0, or at the end, at a multiple of 8.
func keep(path string, index []byte, at uint64) (_ uint64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	there := make([]byte, len(index))
	if _, err := f.ReadAt(there, int64(at)); at != 0 && err == nil && bytes.Equal(there, index) {
		return at, nil
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	at = uint64(info.Size()+7) &^ 7
	if _, err := f.WriteAt(index, int64(at)); err != nil {
		return 0, err
	}
	return at, f.Sync()
}
