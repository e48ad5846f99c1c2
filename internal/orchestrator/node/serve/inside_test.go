package serve_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/node/serve"
	"rockpool/internal/orchestrator/wire"
)

// one is a node with one task t, whose file system is a directory. It has nothing else.
type one struct {
	serve.Node
	dir string
}

func (one) Tasks(string) ([]string, error) { return []string{"t"}, nil }
func (o one) Task(context.Context, string, string) (driver.Task, error) {
	return inside{dir: o.dir}, nil
}
func (o inside) Files() driver.Files { return files{dir: o.dir} }
func (f files) size(name string) (*os.File, int64, error) {
	file, err := os.Open(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, driver.ErrNotFound
	}
	if err != nil {
		return nil, 0, err
	}
	i, err := file.Stat()
	return file, i.Size(), err
}

type inside struct {
	driver.Task
	dir string
}

type files struct {
	driver.Files
	dir string
}

func (f files) Open(_ context.Context, name, _ string) (io.ReadCloser, driver.FileInfo, error) {
	file, size, err := f.size(name)
	return file, driver.FileInfo{Name: name, Size: size}, err
}

func TestAFileInsideATaskIsFollowed(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "out.txt")
	write := func(name, text string, flag int) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write(at, "zero one ", os.O_TRUNC)
	s := httptest.NewServer(serve.New(one{dir: dir}, nil, inspect.Process{}, nil))
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	open := func(query string) *json.Decoder {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/v1/client/fs/stream/a?path=t/out.txt"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return json.NewDecoder(resp.Body)
	}
	frames := open("&offset=5")
	next := func(want wire.StreamFrame) {
		t.Helper()
		var got wire.StreamFrame
		for len(got.Data) == 0 && got.FileEvent == "" { // signs of life
			got = wire.StreamFrame{}
			if err := frames.Decode(&got); err != nil {
				t.Fatalf("instead of %q %s: %v", want.Data, want.FileEvent, err)
			}
		}
		if string(got.Data) != string(want.Data) || got.FileEvent != want.FileEvent || got.Offset != want.Offset {
			t.Fatalf("%q %s at %d, want %q %s at %d", got.Data, got.FileEvent, got.Offset, want.Data, want.FileEvent, want.Offset)
		}
	}
	next(wire.StreamFrame{Data: []byte("one "), Offset: 9})
	write(at, "two ", os.O_APPEND)
	next(wire.StreamFrame{Data: []byte("two "), Offset: 13})
	write(at+".new", "three", os.O_TRUNC) // another file takes its name
	if err := os.Rename(at+".new", at); err != nil {
		t.Fatal(err)
	}
	next(wire.StreamFrame{FileEvent: "file truncated"})
	next(wire.StreamFrame{Data: []byte("three"), Offset: 5})
	once := open("&follow=false&origin=end&offset=2")
	var got wire.StreamFrame
	if err := once.Decode(&got); err != nil || string(got.Data) != "ee" || got.Offset != 5 {
		t.Errorf("from the end: %+v, %v", got, err)
	}
	if err := once.Decode(&got); err != io.EOF {
		t.Errorf("it goes on: %+v, %v", got, err)
	}
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	next(wire.StreamFrame{FileEvent: "file deleted", Offset: 5})
	if err := frames.Decode(&got); err != io.EOF {
		t.Errorf("after its end: %+v, %v", got, err)
	}
}

// outside is a node whose task has no file system of its own: what is asked for lies in the allocation's directory.
type outside struct {
	serve.Node
	dir string
}

func (outside) Tasks(string) ([]string, error)     { return []string{"t"}, nil }
func (o outside) Directory(string) (string, error) { return o.dir, nil }
func (outside) Task(context.Context, string, string) (driver.Task, error) {
	return nil, driver.ErrTaskGone
}

// A file of the allocation's directory is followed through all that can become of it: more, less, another one under its name, and none.
func TestWhatBecomesOfAFollowedFileIsTold(t *testing.T) {
	for name, end := range map[string]func(at string) error{
		"deleted": os.Remove,
		"replaced": func(at string) error {
			return errors.Join(os.WriteFile(at+".new", []byte("another"), 0o600), os.Rename(at+".new", at))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			at := filepath.Join(dir, "alloc", "notes")
			if err := errors.Join(os.Mkdir(filepath.Dir(at), 0o700), os.WriteFile(at, []byte("hello"), 0o600)); err != nil {
				t.Fatal(err)
			}
			s := httptest.NewServer(serve.New(outside{dir: dir}, nil, inspect.Process{}, nil))
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/v1/client/fs/stream/a?path=alloc/notes", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			frames := json.NewDecoder(resp.Body)
			next := func(want wire.StreamFrame) {
				t.Helper()
				var got wire.StreamFrame
				for len(got.Data) == 0 && got.FileEvent == "" { // signs of life
					got = wire.StreamFrame{}
					if err := frames.Decode(&got); err != nil {
						t.Fatalf("instead of %q %s: %v", want.Data, want.FileEvent, err)
					}
				}
				if string(got.Data) != string(want.Data) || got.FileEvent != want.FileEvent || got.Offset != want.Offset || got.File != "alloc/notes" {
					t.Fatalf("%q %s of %s at %d, want %q %s at %d", got.Data, got.FileEvent, got.File, got.Offset, want.Data, want.FileEvent, want.Offset)
				}
			}
			next(wire.StreamFrame{Data: []byte("hello"), Offset: 5})
			if err := os.Truncate(at, 2); err != nil {
				t.Fatal(err)
			}
			next(wire.StreamFrame{FileEvent: "file truncated"})
			next(wire.StreamFrame{Data: []byte("he"), Offset: 2})
			if err := end(at); err != nil {
				t.Fatal(err)
			}
			next(wire.StreamFrame{FileEvent: "file deleted", Offset: 2})
			if err := frames.Decode(&wire.StreamFrame{}); err != io.EOF {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}
