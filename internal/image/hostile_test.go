package image_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/image"
)

// TestReferencesLeadNowhereTheyMayNot is server-side request forgery by image reference.
func TestReferencesLeadNowhereTheyMayNot(t *testing.T) {
	inner := newDepot(t, false)
	inner.push(t, "secret:1", built(t, nil, layer(t, file("f", "x"))))
	s, _ := newStore(t, nil, func(c *image.Config) {
		c.Mirrors = []string{"cloud.example=http://169.254.169.254", "cloud6.example=http://[fd00:ec2::254]:80"}
	})
	_, port, _ := strings.Cut(inner.host, ":")
	for _, ref := range []string{
		"file:///etc/passwd", "http://" + inner.host + "/secret:1", "gopher://x/y",
		inner.host + "/secret:1", "localhost:" + port + "/secret:1", "127.1.2.3:" + port + "/secret:1", "0.0.0.0:" + port + "/secret:1",
		"[::1]:" + port + "/secret:1", "[::ffff:127.0.0.1]:" + port + "/secret:1", "169.254.169.254/latest:1", "[fd00:ec2::254]/latest:1",
		"10.1.2.3/x:1", "192.168.0.1:5000/x:1", "172.16.0.1/x:1", "100.64.0.1/x:1", "100.100.100.200/x:1", "[fe80::1]/x:1", "[fc00::1]/x:1", "168.63.129.16/x:1",
		"cloud.example/x:1", "cloud6.example/x:1", // even what the operator names
	} {
		inner.behave(nil)
		_, err := s.Acquire(t.Context(), ref, image.Options{})
		if !fault.Is(err, fault.Invalid) && !(strings.HasPrefix(ref, "cloud") && strings.Contains(fmt.Sprint(err), "not a public one")) {
			t.Errorf("%s: %v", ref, err)
		}
		if _, err := s.Resolve(t.Context(), ref, nil); err == nil {
			t.Errorf("%s was resolved", ref)
		}
		if inner.count("GET manifests") > 0 {
			t.Errorf("%s reached the registry of the node itself", ref)
		}
	}
}

// TestRedirectsLeadNowhereTheyMayNot: the registry is one that the operator named, where it sends us is not.
func TestRedirectsLeadNowhereTheyMayNot(t *testing.T) {
	reached := 0
	victim := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reached++; _, _ = io.WriteString(w, "secret") }))
	defer victim.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(victim.URL, "http://"), ":")
	d := newDepot(t, false)
	ref, _ := d.push(t, "app:1", built(t, nil, layer(t, file("f", "x"))))
	for _, to := range []string{victim.URL, "http://localhost:" + port, "https://localhost:" + port, "http://169.254.169.254/latest", "file:///etc/passwd"} {
		for _, kind := range []string{"/manifests/", "/blobs/"} {
			d.behave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.Contains(r.URL.Path, kind) {
					http.Redirect(w, r, to+"/x", http.StatusTemporaryRedirect)
					return
				}
				next.ServeHTTP(w, r)
			})
			s, store := newStore(t, d, nil)
			if _, err := s.Acquire(t.Context(), ref, image.Options{}); err == nil || reached > 0 {
				t.Errorf("%s to %s: %v, reached %d times", kind, to, err, reached)
			}
			if left := debris(t, store); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		}
	}
	// A token is asked for where the registry says; that is no way in either.
	d.behave(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://localhost:`+port+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	s, _ := newStore(t, d, nil)
	if _, err := s.Acquire(t.Context(), ref, image.Options{}); err == nil || reached > 0 {
		t.Errorf("by token: %v, reached %d times", err, reached)
	}
}

// TestPathsAreThoseOfTheOperator: whoever may name an image must not read the node's files by it.
func TestPathsAreThoseOfTheOperator(t *testing.T) {
	local, elsewhere := t.TempDir(), t.TempDir()
	saveAll(t, elsewhere, built(t, nil, layer(t, file("f", "x"))))
	for _, err := range []error{os.Symlink("/", filepath.Join(local, "root")), os.Symlink(elsewhere, filepath.Join(local, "away")), os.Mkdir(filepath.Join(local, "fs"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s, store := newStore(t, nil, func(c *image.Config) { c.LocalDirs = []string{local} })
	for _, ref := range []string{
		"dir:/", "dir:/etc", "dir:" + store, "dir:" + local, "dir:" + local + "/", "dir:" + local + "/root", "dir:" + local + "/root/etc", "dir:" + local + "/../", "dir:fs",
		"dir:" + local + "/fs/../../..", "oci-layout:" + elsewhere + "/layout", "oci-layout:" + local + "/away/layout", "docker-archive:" + elsewhere + "/saved.tar",
		"docker-archive:" + local + "/away/saved.tar", "docker-archive:/etc/shadow", "docker-archive:/dev/zero", "dir:" + filepath.Join(store, "layers"), "dir:" + local + "x/fs",
	} {
		if _, err := s.Acquire(t.Context(), ref, image.Options{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", ref, err)
		}
		if _, err := s.Resolve(t.Context(), ref, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("resolve %s: %v", ref, err)
		}
	}
	// What exists and what does not is answered alike.
	_, there := s.Acquire(t.Context(), "dir:/etc/ssh", image.Options{})
	_, not := s.Acquire(t.Context(), "dir:/etc/xyz", image.Options{})
	if a, b := strings.ReplaceAll(fmt.Sprint(there), "ssh", "xyz"), fmt.Sprint(not); a != b {
		t.Errorf("%s\n%s", a, b)
	}
	acquire(t, s, "dir:"+local+"/fs")
	// A layout's own links lead nowhere either.
	saveAll(t, local, built(t, nil, layer(t, file("f", "x"))))
	blobs, _ := filepath.Glob(filepath.Join(local, "layout/blobs/sha256/*"))
	for _, b := range blobs {
		if err := os.Rename(b, b+".moved"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/passwd", b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Acquire(t.Context(), "oci-layout:"+local+"/layout", image.Options{}); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "root:") {
		t.Errorf("a layout of links: %v", err)
	}
}

func TestWhatWasChangedOnTheWayIsRefusedAndLeavesNothing(t *testing.T) {
	d := newDepot(t, false)
	content := strings.Repeat("all of this is compressed, more or less ", 5000)
	l := layer(t, file("a", content))
	i := built(t, nil, layer(t, file("b", "other")), l)
	ref, _ := d.push(t, "app:1", i)
	digest, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := i.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 0x40; return b }
	}
	for name, c := range map[string]struct {
		of     v1.Hash
		change func([]byte) []byte
		says   string
	}{
		"a bit in the middle of a layer": {digest, flip(300), "changed on the way"},
		"a bit at its beginning":         {digest, flip(0), "changed on the way"},
		"a bit at its end":               {digest, flip(-1), "changed on the way"},
		"a layer that is cut":            {digest, func(b []byte) []byte { return b[:len(b)/2] }, "cut off"},
		"an empty layer":                 {digest, func([]byte) []byte { return nil }, "cut off"},
		"a bit in the configuration":     {config, flip(20), ""},
	} {
		t.Run(name, func(t *testing.T) {
			d.behave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, c.of.String()) {
					next.ServeHTTP(w, r)
					return
				}
				answer := httptest.NewRecorder()
				next.ServeHTTP(answer, r)
				w.WriteHeader(answer.Code)
				_, _ = w.Write(c.change(answer.Body.Bytes()))
			})
			s, store := newStore(t, d, nil)
			_, err := s.Acquire(t.Context(), ref, image.Options{})
			if err == nil || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), c.of.String()) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if left := debris(t, store); len(left) > 0 {
				t.Errorf("left %v", left)
			}
			d.behave(nil)
			acquire(t, s, ref) // and it is not poisoned
		})
	}
}

func TestHostileImagesAreRefusedByName(t *testing.T) {
	d := newDepot(t, false)
	small := layer(t, file("f", "x"))
	wrongID := built(t, func(c *v1.ConfigFile) { c.RootFS.DiffIDs[0].Hex = strings.Repeat("a", 64) }, small)
	fewer := built(t, func(c *v1.ConfigFile) { c.RootFS.DiffIDs = nil }, small)
	climbing := built(t, func(c *v1.ConfigFile) { c.RootFS.DiffIDs[0].Hex = "../../../etc" }, small)
	var many []v1.Layer
	for i := range 120 {
		many = append(many, layer(t, file(fmt.Sprint(i), "x")))
	}
	manifest := func(layers string) string {
		c, _ := built(t, nil, small).RawConfigFile()
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":` +
			fmt.Sprint(len(c)) + `,"digest":"` + sum(c) + `"},"layers":[` + layers + `]}`
	}
	d.push(t, "hostile:base", built(t, nil, small)) // its blobs
	digest, _ := small.Digest()
	size, _ := small.Size()
	huge := strings.Repeat(manifest(`{}`)+",", 1)
	for name, c := range map[string]struct {
		image any
		says  string
	}{
		"a wrong diffID":          {wrongID, "the image's configuration says"},
		"fewer diffIDs":           {fewer, "its configuration"},
		"a diffID that climbs":    {climbing, ""},
		"too many layers":         {built(t, nil, many...), "at most 100"},
		"a foreign layer":         {manifest(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip","size":%d,"digest":%q,"urls":["http://169.254.169.254/x"]}`, size, digest)), "foreign"},
		"a layer with an address": {manifest(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":%d,"digest":%q,"urls":["http://169.254.169.254/x"]}`, size, digest)), "foreign"},
		"no layer at all":         {manifest(fmt.Sprintf(`{"mediaType":"application/json","size":%d,"digest":%q}`, size, digest)), "no image that can be run"},
		"100 000 layers":          {manifest(strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":%d,"digest":%q},`, size, digest), 100_000), ",")), ""},
		"a list in a circle":      {circle(d), "circle"},
		"a manifest that is none": {`{"schemaVersion":1,"huge":` + huge + `1}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ref := d.host + "/hostile:1"
			switch what := c.image.(type) {
			case v1.Image:
				ref, _ = d.push(t, "hostile:1", what)
			case string:
				d.behave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if strings.HasSuffix(r.URL.Path, "/manifests/1") {
						w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
						_, _ = io.WriteString(w, what)
						return
					}
					next.ServeHTTP(w, r)
				})
			case func(http.ResponseWriter, *http.Request, http.Handler):
				d.behave(what)
			}
			s, store := newStore(t, d, nil)
			if _, err := s.Acquire(t.Context(), ref, image.Options{}); err == nil || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%.300v", err)
			}
			if left := debris(t, store); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// circle answers every question with another list: lists cannot name themselves by digest, but can go on for ever.
func circle(*depot) func(http.ResponseWriter, *http.Request, http.Handler) {
	text := func(n int) string {
		inner := `{"schemaVersion":2,"manifests":[]}`
		for range n {
			inner = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","size":` +
				fmt.Sprint(len(inner)) + `,"digest":"` + sum([]byte(inner)) + `"}]}`
		}
		return inner
	}
	byDigest := map[string]string{}
	for n := range 40 {
		byDigest[sum([]byte(text(n)))] = text(n)
	}
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		_, what, ok := strings.Cut(r.URL.Path, "/manifests/")
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		if t, ok := byDigest[what]; ok {
			_, _ = io.WriteString(w, t)
			return
		}
		_, _ = io.WriteString(w, text(39))
	}
}

func TestARegistrysWordsAreBounded(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "app:1", built(t, nil, layer(t, file("f", "x"))))
	d.behave(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, `{"errors":[{"code":"X","message":"`+strings.Repeat("a\\nb\u00e9", 1<<17)+`"}]}`)
	})
	s, _ := newStore(t, d, nil)
	if _, err := s.Acquire(t.Context(), ref, image.Options{}); err == nil || len(err.Error()) > 2000 || strings.ContainsRune(err.Error(), '\n') || !strings.Contains(err.Error(), ref) {
		t.Errorf("%d bytes: %.200v", len(fmt.Sprint(err)), err)
	}
}

func TestBombs(t *testing.T) {
	d := newDepot(t, false)
	var zeros bytes.Buffer
	z := gzip.NewWriter(&zeros)
	_, _ = z.Write(archiveOf(t, file("f", "x")))
	for range 64 { // after the archive's end
		_, _ = z.Write(make([]byte, 1<<20))
	}
	_ = z.Close()
	s, store := newStore(t, d, func(c *image.Config) { c.Limits = image.Limits{Bytes: 16 << 20, Entries: 1000} })
	many := make([]string, 2000)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for name, l := range map[string]v1.Layer{
		"bytes":    layer(t, file("f", strings.Repeat("0", 32<<20))),
		"trailing": raw(zeros.Bytes(), "application/vnd.oci.image.layer.v1.tar+gzip"),
		"entries":  layer(t, filesOf(many, "")...),
	} {
		ref, _ := d.push(t, name+":1", built(t, nil, l))
		if _, err := s.Acquire(t.Context(), ref, image.Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "the image has more than") {
			t.Errorf("%s: %v", name, err)
		}
		if left := debris(t, store); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

// A document of four megabytes that is all empty values takes more than a gigabyte once it is parsed.
func TestDocumentsOfEmptyValuesAreRefused(t *testing.T) {
	d := newDepot(t, false)
	small := layer(t, file("f", "x"))
	ref, _ := d.push(t, "app:1", built(t, nil, small))
	empty := strings.Repeat("{},", 1_300_000) + "{}"
	var answer, mediaType string
	d.behave(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			inner.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", mediaType)
		_, _ = io.WriteString(w, answer)
	})
	s, _ := newStore(t, d, nil)
	refused := func(name, ref string) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := s.Acquire(t.Context(), ref, image.Options{})
		runtime.ReadMemStats(&after)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "commas") {
			t.Errorf("%s: %v", name, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 100<<20 {
			t.Errorf("%s took %d MiB", name, used>>20)
		}
	}
	mediaType, answer = "application/vnd.oci.image.index.v1+json", `{"schemaVersion":2,"manifests":[`+empty+`]}`
	refused("a list", ref)
	mediaType, answer = "application/vnd.oci.image.manifest.v1+json", `{"schemaVersion":2,"layers":[`+empty+`]}`
	refused("a manifest", ref)
	d.behave(nil)
	ref, _ = d.push(t, "history:1", built(t, func(c *v1.ConfigFile) { c.History = make([]v1.History, 60_000) }, small))
	refused("a configuration", ref)
}

func TestAFullDiskIsNamedAndLeavesNothing(t *testing.T) {
	d := newDepot(t, false)
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	fits := layer(t, file("small", "x"))
	ref, _ := d.push(t, "large:1", built(t, nil, fits, layer(t, file("f", string(noise)))))
	tiny, _ := d.push(t, "tiny:1", built(t, nil, fits))
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	defer func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s, store := newStore(t, d, func(c *image.Config) { c.Dir = filepath.Join(small, "images") })
	_, err := s.Acquire(t.Context(), ref, image.Options{})
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "full") || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), "layer sha256:") {
		t.Errorf("%v", err)
	}
	if left := debris(t, store); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	acquire(t, s, tiny)
}

func TestImagesAreCollectedByAgeAndSize(t *testing.T) {
	d := newDepot(t, false)
	base := layer(t, file("base", strings.Repeat("b", 100<<10)))
	refs := make([]string, 4)
	for i := range refs {
		refs[i], _ = d.push(t, fmt.Sprintf("app%d:1", i), built(t, nil, base, layer(t, file("own", strings.Repeat(fmt.Sprint(i), 100<<10)))))
	}
	now := time.Unix(1_800_000_000, 0)
	var standing []string
	s, store := newStore(t, d, func(c *image.Config) {
		c.Now, c.MaxBytes, c.MaxAge = func() time.Time { return now }, 420<<10, 24*time.Hour
		c.InUse = func() ([]string, error) { return standing, nil }
	})
	layers := func() int {
		found, _ := os.ReadDir(filepath.Join(store, "layers"))
		return len(found)
	}
	get := func(i int) *image.Image {
		now = now.Add(time.Minute)
		got, err := s.Acquire(t.Context(), refs[i], image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	collect := func() {
		t.Helper()
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
	}
	first := get(0) // leased throughout
	get(1).Release()
	get(2).Release()
	collect() // 1 base + 3 own = 400 KiB: room for all
	if layers() != 4 {
		t.Fatalf("%d layers", layers())
	}
	third := get(3)
	third.Release()
	collect() // 500 KiB: the one not used for longest goes, which is 1, as 0 is leased
	if layers() != 4 {
		t.Errorf("%d layers", layers())
	}
	d.behave(nil)
	get(2).Release()
	if n := d.count("GET manifests"); n != 0 {
		t.Errorf("the wrong image was removed: %d questions", n)
	}
	get(1).Release()
	if n := d.count("GET manifests"); n != 1 {
		t.Errorf("the image that was used least recently is still there: %d questions", n)
	}
	collect()

	// Age takes all but what is leased, and what a sandbox of an earlier process stands on.
	one := get(1)
	one.Release()
	standing = one.Root.Lower
	now = now.Add(25 * time.Hour)
	collect()
	if layers() != 3 {
		t.Errorf("%d layers after a day, want the base and two own ones", layers())
	}
	read(t, filepath.Join(first.Root.Lower[0], "own"))
	read(t, filepath.Join(one.Root.Lower[0], "own"))
	first.Release()
	standing = nil
	now = now.Add(25 * time.Hour)
	collect()
	if left := debris(t, store); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestRunCollectsAfterARelease(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "app:1", built(t, nil, layer(t, file("f", "x"))))
	now := time.Now()
	asked := make(chan struct{}, 8)
	s, _ := newStore(t, d, func(c *image.Config) {
		c.MaxBytes, c.Now = 1, func() time.Time { return now }
		c.InUse = func() ([]string, error) {
			select {
			case asked <- struct{}{}:
			default:
			}
			return nil, errors.New("nobody knows what is in use")
		}
	})
	<-asked // at the start
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- s.Run(ctx) })
	acquire(t, s, ref).Release()
	<-asked // because of the release; the answer is an error, so nothing may go
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	wg.Wait()
	d.Close()
	acquire(t, s, ref)
}

func TestDebrisOfAnInterruptedPullIsRemoved(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "app:1", built(t, nil, layer(t, file("f", "x"))))
	s, store := newStore(t, d, nil)
	acquire(t, s, ref).Release()
	whole := debris(t, store)
	for _, dir := range []string{"work/layer-123/etc", "layers/" + strings.Repeat("c", 64) + "/etc"} {
		if err := os.MkdirAll(filepath.Join(store, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"x.json.new": "{", "y.json": "{", strings.Repeat("d", 64) + ".json": `{"ID":"sha256:` + strings.Repeat("d", 64) + `","Layers":[{"DiffID":"gone"}]}`} {
		if err := os.WriteFile(filepath.Join(store, "images", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := image.New(image.Config{Dir: store}); err != nil {
		t.Fatal(err)
	}
	if left := debris(t, store); fmt.Sprint(left) != fmt.Sprint(whole) {
		t.Errorf("left %v, want %v", left, whole)
	}
}

func BenchmarkAcquirePresent(b *testing.B) {
	d := newDepot(b, false)
	ref, _ := d.push(b, "app:1", built(b, nil, layer(b, file("f", "x"))))
	s, _ := newStore(b, d, nil)
	acquire(b, s, ref)
	for b.Loop() {
		i, err := s.Acquire(b.Context(), ref, image.Options{})
		if err != nil {
			b.Fatal(err)
		}
		i.Release()
	}
}

func BenchmarkPull(b *testing.B) {
	d := newDepot(b, false)
	var layers []v1.Layer
	const files, size = 2000, 16 << 10
	total := 0
	for n := range 3 {
		var all []string
		for i := range files {
			all = append(all, fmt.Sprintf("%d/%d", i/100, i))
		}
		headers := filesOf(all, strings.Repeat(fmt.Sprintf("line %d of some file\n", n), size/20))
		total += files * size
		layers = append(layers, layer(b, headers...))
	}
	ref, _ := d.push(b, "big:1", built(b, nil, layers...))
	b.SetBytes(int64(total))
	for b.Loop() {
		b.StopTimer()
		s, store := newStore(b, d, nil)
		b.StartTimer()
		i, err := s.Acquire(b.Context(), ref, image.Options{})
		if err != nil {
			b.Fatal(err)
		}
		i.Release()
		b.StopTimer()
		_ = os.RemoveAll(store)
		b.StartTimer()
	}
	b.ReportMetric(float64(runtime.NumCPU()), "cores")
}
