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
// to the file system's journal too: another write, and another wait for the disk. So zeros are written ahead of the entries, many blocks at a time. Entries are
// written one behind the other, and what is behind the last one is of no use: zeros that nobody has written, or what a crash has left of a write. Then a sync
// of the data alone has only these to write (fdatasync(2): the size does not change).
type logFiles struct{ *walfs.FS }

func newLogFiles() types.VFS { return logFiles{walfs.New()} }

// Create makes a file. Its first sync makes its name durable too, see walfs.File.
func (l logFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	return prepared(l.FS.Create(dir, name, size))
}

// OpenWriter opens the file that an earlier process wrote last, and may have ended before it was synced.
func (l logFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return nil, fmt.Errorf("make the names of the log's files durable: %w", err)
	}
	return prepared(l.FS.OpenWriter(dir, name))
}

const (
	// fillAhead is how many bytes are written at a time: some 80 batches of entries. It takes the disk as long as two or three of these.
	fillAhead = 256 << 10
	// largeBatch is the size from which on a batch writes so many blocks itself that nothing is gained ahead of it.
	largeBatch = fillAhead / 4
	// nextFrame is what raft-wal reads behind the last batch when it looks whether there is another.
	nextFrame = 8
)

var zeros [fillAhead]byte

// osFile is what raft-wal's file system makes its files of.
type osFile interface {
	types.WritableFile
	Fd() uintptr
	Stat() (os.FileInfo, error)
}

// logFile is written to by one goroutine at a time, each batch behind the one before.
type logFile struct {
	osFile
	filled int64 // blocks before this were written
	end    int64 // of what was reserved; 0 = nothing is written ahead
	synced bool  // once, with all that belongs to the file
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
	if info, err := of.Stat(); err == nil && inPlace(of.Fd()) {
		l.end = info.Size()
	}
	return l, nil
}

// inPlace reports whether a file is on a file system that is known to write a block again in its place. On others zeros gain nothing.
func inPlace(fd uintptr) bool {
	var s unix.Statfs_t
	return unix.Fstatfs(int(fd), &s) == nil && (s.Type == unix.EXT4_SUPER_MAGIC || s.Type == unix.XFS_SUPER_MAGIC)
}

// WriteAt writes a batch of entries.
func (l *logFile) WriteAt(b []byte, at int64) (int, error) {
	l.filled = max(l.filled, at)
	switch to := at + int64(len(b)); {
	case to+nextFrame <= l.filled || l.filled >= l.end:
	case to-l.filled >= largeBatch:
		l.filled = to
	default:
		l.fill(max(l.filled, to), min(l.end, to+fillAhead))
	}
	return l.osFile.WriteAt(b, at)
}

// fill writes zeros. What is before from is about to be written anyway. A disk that does not take them is seen by the entries, if it does not take these either.
func (l *logFile) fill(from, to int64) {
	l.filled = max(from, to)
	if from < to {
		_, _ = l.osFile.WriteAt(zeros[:to-from], from)
	}
}

// Sync returns when what was written is on the disk.
func (l *logFile) Sync() error {
	if !l.synced {
		err := l.osFile.Sync()
		l.synced = err == nil
		return err
	}
	for {
		if err := unix.Fdatasync(int(l.Fd())); !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
