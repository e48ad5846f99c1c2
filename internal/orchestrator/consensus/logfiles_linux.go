package consensus

import (
	"errors"
	"fmt"
	"os"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// logFiles are the files of the log, made so that a sync writes entries and nothing else.
//
// raft-wal has the blocks of a file reserved when it is made, and the first write to each of them is a change of the file's description, which a sync has to bring
// to the file system's journal too: another write, and another wait for the disk. So zeros are written ahead of the entries, many blocks at a time. What is there is
// the same: a block that was never written reads as zeros. Then a sync of the data alone has only these to write (fdatasync(2): the size does not change).
type logFiles struct{ *walfs.FS }

func newLogFiles() types.VFS { return logFiles{walfs.New()} }

// Create makes a file.
func (l logFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	return prepared(l.FS.Create(dir, name, size))
}

// OpenWriter opens the file that an earlier process wrote last.
func (l logFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	return prepared(l.FS.OpenWriter(dir, name))
}

// fillAhead is how many bytes are written at a time: some 80 batches of entries. It takes the disk as long as two or three of these.
const fillAhead = 256 << 10

var zeros [fillAhead]byte

// osFile is what raft-wal's file system makes its files of.
type osFile interface {
	types.WritableFile
	Fd() uintptr
	Stat() (os.FileInfo, error)
}

// logFile is written to by one goroutine at a time.
type logFile struct {
	osFile
	filled int64 // blocks before this were written once
	end    int64 // and up to here there is nothing but a hole; below filled: it is not filled
	named  bool  // a sync has made the file's name durable
}

func prepared(f types.WritableFile, err error) (types.WritableFile, error) {
	if err != nil {
		return nil, err
	}
	of, ok := f.(osFile)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a file of the log is a %T, which has no descriptor", f), f.Close())
	}
	l := &logFile{osFile: of}
	if l.filled, l.end, err = hole(of); err != nil {
		return nil, errors.Join(fmt.Errorf("look for what was written of the log: %w", err), f.Close())
	}
	return l, nil
}

// hole finds what was never written at the end of a file, where that is worth to be known: on file systems that write a block again in its place.
func hole(f osFile) (from, to int64, err error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
		return 0, 0, err
	}
	if s.Type != unix.EXT4_SUPER_MAGIC && s.Type != unix.XFS_SUPER_MAGIC {
		return 0, 0, nil
	}
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, 0, err
	}
	if from, err = unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	// There may be more behind it: an index that was written when the log was mended.
	switch _, err = unix.Seek(int(f.Fd()), from, unix.SEEK_DATA); {
	case err == nil:
		return from, from, nil
	case errors.Is(err, unix.ENXIO):
		return from, info.Size(), nil
	}
	return 0, 0, err
}

// WriteAt writes entries behind those before.
func (l *logFile) WriteAt(b []byte, at int64) (int, error) {
	if to := at + int64(len(b)); to > l.filled && l.filled < l.end {
		if err := l.fill(max(l.filled, to), min(l.end, to+fillAhead)); err != nil {
			return 0, err
		}
	}
	return l.osFile.WriteAt(b, at)
}

// fill writes zeros. What is before from is about to be written anyway.
func (l *logFile) fill(from, to int64) error {
	for at := from; at < to; at += int64(len(zeros)) {
		if _, err := l.osFile.WriteAt(zeros[:min(int64(len(zeros)), to-at)], at); err != nil {
			return fmt.Errorf("write ahead of the log: %w", err)
		}
	}
	l.filled = max(from, to)
	return nil
}

// Sync returns when what was written is on the disk.
func (l *logFile) Sync() error {
	if !l.named {
		err := l.osFile.Sync()
		l.named = err == nil
		return err
	}
	for {
		if err := unix.Fdatasync(int(l.Fd())); !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
