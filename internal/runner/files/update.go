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

// keepInMemory is how large an archive may be before it goes to a temporary file.
const keepInMemory = 1 << 20

// Update is a request to delete and write files. Close it.
type Update struct {
	Deletes []string
	spool
}

// copyEntry is one element of the request's "copy".
type copyEntry struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
}

// Read decodes a request. Files are taken one at a time, so that memory is bounded by the largest one; nothing is written anywhere in the runner before the
// whole request has turned out to be well formed. modified is the time the files get.
func Read(body io.Reader, modified time.Time) (u *Update, err error) {
	u = &Update{}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	tw := tar.NewWriter(u)
	d := json.NewDecoder(body)
	if err := object(d, func(key string) error {
		switch {
		case strings.EqualFold(key, "delete"):
			return d.Decode(&u.Deletes)
		case strings.EqualFold(key, "copy"):
			return array(d, func() error {
				var c copyEntry
				if err := d.Decode(&c); err != nil {
					return err
				}
				return c.write(tw, modified)
			})
		}
		var skipped json.RawMessage
		return d.Decode(&skipped)
	}); err != nil {
		if _, ok := errors.AsType[*fault.Error](err); ok {
			return u, err
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("EOF")
		}
		return u, fault.Wrap(fault.Invalid, err, "%s", err.Error())
	}
	_, _ = io.Copy(io.Discard, body) // what follows the first value is ignored
	return u, tw.Close()
}

func (c copyEntry) write(tw *tar.Writer, modified time.Time) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(c.Path), Mode: 0o744, Size: int64(len(c.Content)), ModTime: modified, Format: tar.FormatPAX}
	if strings.HasSuffix(c.Path, "/") {
		h.Typeflag, h.Mode, h.Size, c.Content = tar.TypeDir, 0o1777, 0, nil
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	}
	if err := tw.WriteHeader(h); err != nil {
		return fault.Wrap(fault.Invalid, err, "the path %q cannot be written", c.Path)
	}
	_, err := tw.Write(c.Content)
	return err
}

// object calls member for each key of the object that comes next; null is an empty object.
func object(d *json.Decoder, member func(key string) error) error {
	return composite(d, '{', "object", func() error {
		t, err := d.Token()
		if err != nil {
			return err
		}
		return member(t.(string)) // the decoder has checked that a key is a string
	})
}

func array(d *json.Decoder, element func() error) error { return composite(d, '[', "array", element) }

func composite(d *json.Decoder, open json.Delim, name string, each func() error) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	if t == nil {
		return nil
	}
	if t != open {
		return fmt.Errorf("json: %v where an %s is needed", t, name)
	}
	for d.More() {
		if err := each(); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// spool keeps what is written in memory and, when it grows, in a file without a name.
type spool struct {
	memory bytes.Buffer
	file   *os.File
}

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.memory.Len()+len(p) > keepInMemory {
		f, err := os.CreateTemp("", "rockpool-files-")
		if err != nil {
			return 0, fmt.Errorf("create a temporary file: %w", err)
		}
		s.file = f
		_ = os.Remove(f.Name())
		if _, err := f.Write(s.memory.Bytes()); err != nil {
			return 0, fmt.Errorf("write a temporary file: %w", err)
		}
		s.memory = bytes.Buffer{}
	}
	if s.file != nil {
		return s.file.Write(p)
	}
	return s.memory.Write(p)
}

// Archive is the tar archive from its beginning.
func (s *spool) Archive() (io.Reader, error) {
	if s.file == nil {
		return bytes.NewReader(s.memory.Bytes()), nil
	}
	size, err := s.file.Seek(0, io.SeekEnd)
	return io.NewSectionReader(s.file, 0, size), err
}

// Close gives the temporary file back.
func (s *spool) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
