package files_test

import (
	"archive/tar"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/runner/files"
)

// FuzzUpdatesAreReadAsEncodingJSONDoes holds the scanner to encoding/json, which reads the same body whole.
func FuzzUpdatesAreReadAsEncodingJSONDoes(f *testing.F) {
	for _, seed := range []string{
		`{"delete":["./*"],"copy":[{"path":"a/"},{"path":"../b","content":"aGk="}]}`, `{"copy":{}}`, `[`, ``, ` `, `null`, `nul`, `{} trailing`, `{"Delete":["a"],"COPY":[{"Path":"b"}]}`,
		`{"copy":[{"path":"a"}],"copy":[{"path":"b"}]}`, `{"copy":[{"path":"a"}],"copy":null}`, `{"copy":[null,{"content":null,"path":"a"}]}`, `{"copy":[{"content":"aG\/k\u003d\n=","path":"\u00e4\"\\"}]}`,
		`{"copy":[{"content":"aGk=aGk="}]}`, `{"copy":[{"content":"aGk"}]}`, `{"copy":[{"content":3}]}`, `{"copy":[{"content":[104,105]}]}`, `{"x":[1,{"y":"]}\""}],"delete":null}`, `{"x":tru}`, `{"x":1}}`, `{,}`, `{"a":1,}`,
		`{"delete":["a"],"delete":["b"]}`, `{"delete":["","/","./","./*",".","a/..","../..","a"]}`, `{"x" 1}`, `{"x":1 "y":2}`, `{"copy":[{"path":3}]}`, `{"copy":[3]}`, `true`, `{"copy":[{"path":"a"},]}`, `{x:1}`, `{"copy":[{"content":"a` + "\x01" + `"}]}`, `{"copy":[{"content":"\ud83d\ude00"}]}`,
		`{"x":-}`, `null00`, `1 2`, `{"x":null0}`, `{"x":1e5,"y":[]}`, `{"copy":[]}`, `{"copy":[{"content":"aGk=","content":""}]}`, `{"copy":[{"content":"aGk=","content":null}]}`, `{"x":` + strings.Repeat("[", 20000) + `}`, "{\"x\":\"\xff\"}",
	} {
		f.Add(seed)
	}
	type entry struct {
		Path    string
		Content fresh[[]byte]
	}
	type model struct {
		Delete fresh[[]string]
		Copy   fresh[[]entry]
	}
	f.Fuzz(func(t *testing.T, body string) {
		var want model
		wantErr := json.NewDecoder(strings.NewReader(body)).Decode(&want)
		u, err := files.Read(iotest.OneByteReader(strings.NewReader(body)), time.Unix(0, 0), nil)
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatalf("%q: %v", body, err)
		}
		unwritable := false
		for _, c := range want.Copy.value {
			unwritable = unwritable || strings.ContainsRune(c.Path, 0)
		}
		if unwritable || errors.Is(wantErr, errors.ErrUnsupported) {
			return
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got %v, encoding/json says %v", body, err, wantErr)
		}
		if err != nil {
			return
		}
		defer u.Close()
		want.Delete.value = slices.DeleteFunc(want.Delete.value, func(d string) bool {
			d = path.Clean(d)
			return d == "." || d == ".." || strings.HasSuffix(d, "/..")
		})
		if fmt.Sprintf("%q", u.Deletes) != fmt.Sprintf("%q", want.Delete.value) {
			t.Errorf("%q: deletes %q, want %q", body, u.Deletes, want.Delete.value)
		}
		archive, err := u.Archive()
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(archive)
		for _, c := range want.Copy.value {
			h, err := tr.Next()
			if err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			name, data := path.Clean(c.Path), c.Content.value
			if strings.HasSuffix(c.Path, "/") {
				name, data = strings.TrimSuffix(name, "/")+"/", nil
			}
			got, err := io.ReadAll(tr)
			if err != nil || h.Name != name || string(got) != string(data) {
				t.Fatalf("%q: got %q with %q (%v), want %q with %q", body, h.Name, got, err, name, data)
			}
		}
		if _, err := tr.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%q: there is more in the archive: %v", body, err)
		}
	})
}

// fresh is a value that a second one replaces; encoding/json would merge them.
type fresh[T any] struct{ value T }

func (f *fresh[T]) UnmarshalJSON(data []byte) error {
	f.value = *new(T)
	return json.Unmarshal(data, &f.value)
}

// repeated is a body of any size that nobody has to hold.
func repeated(before, piece string, n int, after string) io.Reader {
	readers := []io.Reader{strings.NewReader(before)}
	for range n {
		readers = append(readers, strings.NewReader(piece))
	}
	return io.MultiReader(append(readers, strings.NewReader(after))...)
}

func TestALargeFileCostsNoMemory(t *testing.T) {
	const pieces = 24 // 1 MiB each, three times what may be in use
	piece := strings.Repeat(base64.StdEncoding.EncodeToString([]byte("abc")), 1<<18)
	peak := uint64(0)
	measure := func() {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapAlloc)
	}
	measure()
	before, n := peak, 0
	body := readerFunc(func(r io.Reader) func(p []byte) (int, error) {
		return func(p []byte) (int, error) {
			if n++; n%512 == 0 {
				measure()
			}
			return r.Read(p)
		}
	}(repeated(`{"copy":[{"path":"big","content":"`, piece, pieces, `"}]}`)))
	u, err := files.Read(body, time.Unix(0, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	measure()
	if grown := peak - before; grown > 8<<20 {
		t.Errorf("%d bytes were in use for a body of %d", grown, pieces<<20)
	}
	if want := int64(pieces) << 20 / 4 * 3; u.Size() < want {
		t.Errorf("%d bytes were kept, want %d", u.Size(), want)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestValuesThatMustBeKeptAreBounded(t *testing.T) {
	mib := strings.Repeat("x", 1<<20)
	for name, body := range map[string]io.Reader{
		"a path":             repeated(`{"copy":[{"path":"`, mib, 20, `"}]}`),
		"an unknown member":  repeated(`{"x":"`, mib, 20, `"}`),
		"an unknown array":   repeated(`{"x":[`, strings.Repeat("1,", 1<<19), 20, `1]}`),
		"what is deleted":    repeated(`{"delete":["`, mib, 20, `"]}`),
		"nesting":            repeated(`{"x":`, strings.Repeat("[", 1<<10), 11, ``),
		"a key":              repeated(`{"`, mib, 20, `":1}`),
		"a number":           repeated(`{"x":`, strings.Repeat("1", 1<<20), 20, `}`),
		"a backslash's rest": repeated(`{"x":"`, strings.Repeat(`\"`, 1<<19), 20, `"}`),
	} {
		u, err := files.Read(body, time.Unix(0, 0), nil)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "larger than 16777216") && !strings.Contains(err.Error(), "deeper than 10000") {
			t.Errorf("%s: got %v", name, err)
		}
		if err == nil {
			u.Close()
		}
	}
}

func TestAnErrorOfTheBodyIsNotTakenForItsEnd(t *testing.T) {
	for _, body := range []string{``, `{"copy":[`, `{"copy":[{"content":"aG`, `{"x":1`, `{} `} {
		_, err := files.Read(io.MultiReader(strings.NewReader(body), iotest.ErrReader(io.ErrNoProgress)), time.Unix(0, 0), nil)
		if !errors.Is(err, io.ErrNoProgress) || !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: got %v", body, err)
		}
	}
}
