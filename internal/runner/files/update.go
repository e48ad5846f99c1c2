package files

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"rockpool/internal/fault"
)

// keepInMemory is how large an archive, or one file's content, may be before it goes to a temporary file.
const keepInMemory = 1 << 20

// Update is a request to delete and write files. Close it.
type Update struct {
	Deletes []string
	spool
	names int64 // bytes that Deletes are reckoned to take
}

// perName is what a path takes besides its bytes while it is put into a list: the list is at times twice there, and partly empty.
const perName = 48

// maxPath is how long a file's path may be, in bytes: no system takes longer ones, and each is several times in memory until it is written.
const maxPath = 4096

// maxNames bounds the paths that one request deletes, in bytes as perName reckons.
const maxNames = 64 << 20

// Read decodes a request. Contents are decoded as they arrive, so that memory does not grow with them; nothing is written anywhere in the runner before the
// whole request has turned out to be well formed. modified is the time the files get. What does not fit into room, nil = everything does, is of the kind Exhausted.
func Read(body io.Reader, modified time.Time, room *Room) (u *Update, err error) {
	u = &Update{spool: spool{room: room}}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	tw := tar.NewWriter(u)
	s := newScanner(body)
	defer s.close()
	s.room = room
	err = s.object(func(key string) error {
		switch {
		case strings.EqualFold(key, "delete"):
			u.forgetNames() // of a key that comes twice the last counts
			return s.array(func() error { return u.name(s) })
		case strings.EqualFold(key, "copy"):
			if err := u.reset(); err != nil {
				return err
			}
			tw = tar.NewWriter(u)
			return s.array(func() error { return u.copy(s, tw, modified) })
		}
		return s.decode(new(json.RawMessage))
	})
	if err == nil {
		_, err = io.Copy(io.Discard, s.r) // what follows the first value is ignored
	}
	switch _, ours := errors.AsType[*fault.Error](err); {
	case err == nil:
		return u, tw.Close()
	case ours, errors.As(err, new(*spoolError)):
		return u, err
	case errors.Is(err, io.EOF):
		return u, fault.Wrap(fault.Invalid, err, "the request body is empty, but a JSON object is needed")
	}
	return u, fault.Wrap(fault.Invalid, err, "%s", err.Error())
}

// name takes one path in that is deleted.
func (u *Update) name(s *scanner) error {
	var name string
	if err := s.decode(&name); err != nil || kept(name) {
		return err
	}
	n := int64(len(name)) + perName
	if err := u.room.take(n, 0); err != nil {
		return err
	}
	u.names += n
	if u.names > maxNames {
		return fault.New(fault.Invalid, "the paths to delete take more than %d bytes", maxNames)
	}
	u.Deletes = append(u.Deletes, name)
	return nil
}

func (u *Update) forgetNames() {
	u.room.give(u.names, 0)
	u.Deletes, u.names = nil, 0
}

// Close gives everything back that the request took.
func (u *Update) Close() error {
	u.forgetNames()
	return u.spool.Close()
}

// kept reports whether a path names a directory by a dot, or nothing at all: rm refuses these, and so the directory that programs work in stays.
func kept(name string) bool {
	base := path.Base(path.Clean(name))
	return base == "." || base == ".."
}

// copy takes one file in.
func (u *Update) copy(s *scanner, tw *tar.Writer, modified time.Time) error {
	var name string
	content := spool{room: u.room}
	defer content.Close()
	err := s.object(func(key string) error {
		switch {
		case strings.EqualFold(key, "path"):
			return s.decode(&name)
		case strings.EqualFold(key, "content"):
			if err := content.reset(); err != nil {
				return err
			}
			return s.bytes(&content)
		}
		return s.decode(new(json.RawMessage))
	})
	if err != nil {
		return err
	}
	if len(name) > maxPath {
		return fault.New(fault.Invalid, "the path of a file is %d bytes long, more than %d", len(name), maxPath)
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(name), Mode: 0o744, Size: content.Size(), ModTime: modified, Format: tar.FormatPAX}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o1777, 0
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	}
	if err := tw.WriteHeader(h); err != nil {
		if _, ours := errors.AsType[*fault.Error](err); ours || errors.As(err, new(*spoolError)) {
			return err
		}
		return fault.Wrap(fault.Invalid, err, "the path %q cannot be written", name)
	}
	if h.Size == 0 {
		return nil
	}
	data, err := content.Archive()
	if err == nil {
		err = pour(tw, data)
	}
	return err
}

// spool keeps what is written in memory and, when it grows or memory is short, in a file without a name.
type spool struct {
	room   *Room
	memory bytes.Buffer
	file   *os.File
	size   int64
}

// spoolError is a failure of this machine's disk, which is not the caller's.
type spoolError struct{ error }

func (e *spoolError) Unwrap() error { return e.error }

// Size is how much was written, in bytes.
func (s *spool) Size() int64 { return s.size }

func (s *spool) Write(p []byte) (n int, err error) {
	more := int64(len(p))
	if s.file == nil && s.size+more <= keepInMemory && s.room.take(more, 0) == nil {
		s.size += more
		return s.memory.Write(p)
	}
	if err := s.toFile(); err != nil {
		return 0, err
	}
	if err := s.room.take(0, more); err != nil {
		return 0, err
	}
	s.size += more // also of what cannot be written: it was taken
	if n, err = s.file.Write(p); err != nil {
		err = broken(err)
	}
	return n, err
}

// toFile moves what is in memory.
func (s *spool) toFile() error {
	if s.file != nil {
		return nil
	}
	if err := s.room.take(0, s.size); err != nil {
		return err
	}
	f, err := os.CreateTemp("", "rockpool-files-")
	if err == nil {
		_ = os.Remove(f.Name())
		if _, err = f.Write(s.memory.Bytes()); err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		s.room.give(0, s.size)
		return broken(err)
	}
	s.room.give(s.size, 0)
	s.file, s.memory = f, bytes.Buffer{}
	return nil
}

func broken(err error) error {
	return &spoolError{fmt.Errorf("keep an upload in a temporary file: %w", err)}
}

// reset forgets what was written.
func (s *spool) reset() error { return s.Close() }

// Archive is what was written, from its beginning.
func (s *spool) Archive() (io.Reader, error) {
	if s.file == nil {
		return bytes.NewReader(s.memory.Bytes()), nil
	}
	return io.NewSectionReader(s.file, 0, s.size), nil
}

// Close gives memory and the temporary file back. The spool is empty then.
func (s *spool) Close() (err error) {
	if s.file == nil {
		s.room.give(s.size, 0)
	} else {
		s.room.give(0, s.size)
		err = s.file.Close()
	}
	*s = spool{room: s.room}
	return err
}
