package image_test

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"rockpool/internal/image"
)

// file is a regular file; archiveOf takes its content from Linkname.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), Linkname: content}
}

func filesOf(names []string, content string) (all []tar.Header) {
	for _, n := range names {
		all = append(all, file(n, content))
	}
	return all
}

func dir(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }

func archiveOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layer is a gzip layer.
func layer(t testing.TB, headers ...tar.Header) v1.Layer {
	t.Helper()
	text := archiveOf(t, headers...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// built makes an image of layers for this machine. change may alter its configuration.
func built(t testing.TB, change func(*v1.ConfigFile), layers ...v1.Layer) v1.Image {
	t.Helper()
	i, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := i.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	if change != nil {
		change(c)
	}
	if i, err = mutate.ConfigFile(i, c); err != nil {
		t.Fatal(err)
	}
	return i
}

// depot is a registry in this process that counts what it is asked, and may be told to behave badly.
type depot struct {
	*httptest.Server
	host string

	mu     sync.Mutex
	asked  map[string]int // by method and kind: "GET manifests", "GET blobs"
	tamper func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func newDepot(t testing.TB, secure bool) *depot {
	t.Helper()
	d := &depot{asked: map[string]int{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		tamper := d.tamper
		for _, kind := range []string{"manifests", "blobs"} {
			if strings.Contains(r.URL.Path, "/"+kind+"/") {
				d.asked[r.Method+" "+kind]++
			}
		}
		d.mu.Unlock()
		if tamper != nil {
			tamper(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	})
	if secure {
		d.Server = httptest.NewTLSServer(serve)
	} else {
		d.Server = httptest.NewServer(serve)
	}
	t.Cleanup(d.Close)
	u, err := url.Parse(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	d.host = u.Host
	return d
}

func (d *depot) behave(tamper func(http.ResponseWriter, *http.Request, http.Handler)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tamper, d.asked = tamper, map[string]int{}
}

func (d *depot) count(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[what]
}

// push stores an image or an index under a name, and returns the reference and the digest.
func (d *depot) push(t testing.TB, repository string, what remote.Taggable) (ref string, digest string) {
	t.Helper()
	d.behave(nil)
	ref = d.host + "/" + repository
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	tr := d.Client().Transport
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(parsed, what, remote.WithTransport(tr))
	case v1.ImageIndex:
		err = remote.WriteIndex(parsed, what, remote.WithTransport(tr))
	default:
		err = remote.Put(parsed, what, remote.WithTransport(tr))
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Head(parsed, remote.WithTransport(tr))
	if err != nil {
		t.Fatal(err)
	}
	d.behave(nil)
	return ref, got.Digest.String()
}

// newStore makes a store that may ask a registry over plain HTTP.
func newStore(t testing.TB, d *depot, change func(*image.Config)) (*image.Store, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root: files of a layer belong to many users")
	}
	cfg := image.Config{Dir: filepath.Join(t.TempDir(), "images"), Credentials: filepath.Join(t.TempDir(), "none.json")}
	if err := os.WriteFile(cfg.Credentials, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d != nil {
		cfg.PlainHTTP = []string{d.host}
	}
	if change != nil {
		change(&cfg)
	}
	s, err := image.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, cfg.Dir
}

func acquire(t testing.TB, s *image.Store, ref string) *image.Image {
	t.Helper()
	i, err := s.Acquire(t.Context(), ref, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Release)
	return i
}

// debris lists what a store has below its directory besides what is listed in keep: layers, records, work.
func debris(t testing.TB, dir string) (left []string) {
	t.Helper()
	for _, sub := range []string{"layers", "images", "work"} {
		found, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			left = append(left, sub+"/"+f.Name())
		}
	}
	return left
}

// raw is a layer of given bytes that says of itself what it is told to say.
func raw(content []byte, mediaType types.MediaType) v1.Layer {
	return static.NewLayer(content, mediaType)
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
