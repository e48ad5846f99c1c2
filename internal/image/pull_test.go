package image_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"

	"rockpool/internal/fault"
	"rockpool/internal/image"
)

func TestAnImageIsPulledOnceAndSharedByAll(t *testing.T) {
	d := newDepot(t, false)
	ref, digest := d.push(t, "course/python:3", built(t, func(c *v1.ConfigFile) {
		c.Config.Env = []string{"LANG=C.UTF-8"}
		c.Config.WorkingDir, c.Config.User = "/srv", "1000:1000"
		c.Config.Entrypoint = []string{"/never"}
	}, layer(t, dir("bin"), file("bin/python", "one")), layer(t, file("bin/pip", "two"))))
	s, store := newStore(t, d, nil)

	const callers = 20
	images := make([]*image.Image, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() { images[i], errs[i] = s.Acquire(t.Context(), ref, image.Options{}) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(images[i].Root.Lower, images[0].Root.Lower) {
			t.Errorf("not shared: %v", images[i].Root.Lower)
		}
		images[i].Release()
	}
	if m, b := d.count("GET manifests"), d.count("GET blobs"); m != 1 || b != 3 {
		t.Errorf("%d manifests and %d blobs were asked for, want 1 and 3 (configuration and two layers)", m, b)
	}
	i := images[0]
	if i.Digest != digest || i.Root.WorkDir != "/srv" || i.Root.User != "1000:1000" ||
		!slices.Contains(i.Root.Env, "LANG=C.UTF-8") || !slices.ContainsFunc(i.Root.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		t.Errorf("%+v", i)
	}
	if got := read(t, filepath.Join(i.Root.Lower[0], "bin/pip")) + read(t, filepath.Join(i.Root.Lower[1], "bin/python")); got != "twoone" {
		t.Errorf("layers hold %q", got)
	}

	// A store opened again knows it, and asks nobody.
	d.behave(nil)
	again, err := image.New(image.Config{Dir: store, PlainHTTP: []string{d.host}})
	if err != nil {
		t.Fatal(err)
	}
	if j := acquire(t, again, ref); !slices.Equal(j.Root.Lower, i.Root.Lower) || j.Digest != digest {
		t.Errorf("%+v", j)
	}
	acquire(t, again, d.host+"/course/python@"+digest)
	if m := d.count("GET manifests"); m != 0 {
		t.Errorf("a present image was asked for %d times", m)
	}
}

func TestLayersAreSharedBetweenImages(t *testing.T) {
	d := newDepot(t, false)
	base := layer(t, file("base", "shared"))
	one, _ := d.push(t, "one:1", built(t, nil, base, layer(t, file("one", "1"))))
	two, _ := d.push(t, "two:1", built(t, nil, base, layer(t, file("two", "2"))))
	s, store := newStore(t, d, nil)
	first, second := acquire(t, s, one), acquire(t, s, two)
	if first.Root.Lower[1] != second.Root.Lower[1] {
		t.Errorf("%v %v", first.Root.Lower, second.Root.Lower)
	}
	if layers, _ := os.ReadDir(filepath.Join(store, "layers")); len(layers) != 3 {
		t.Errorf("%d layers", len(layers))
	}
}

func TestTheSameLayerTwiceIsStackedOnce(t *testing.T) {
	d := newDepot(t, false)
	same := layer(t, file("same", "x"))
	ref, _ := d.push(t, "twice:1", built(t, nil, same, layer(t, file("between", "y")), same))
	s, _ := newStore(t, d, nil)
	if i := acquire(t, s, ref); len(i.Root.Lower) != 2 || read(t, filepath.Join(i.Root.Lower[0], "same")) != "x" {
		t.Errorf("%v", i.Root.Lower)
	}
}

func TestForceAsksWhatATagMeansNow(t *testing.T) {
	d := newDepot(t, false)
	ref, old := d.push(t, "moving:latest", built(t, nil, layer(t, file("v", "1"))))
	s, _ := newStore(t, d, nil)
	acquire(t, s, ref)
	_, now := d.push(t, "moving:latest", built(t, nil, layer(t, file("v", "2"))))
	if i := acquire(t, s, ref); i.Digest != old || d.count("GET manifests") != 0 {
		t.Errorf("without force: digest %s, %d manifests", i.Digest, d.count("GET manifests"))
	}
	if r, err := s.Resolve(t.Context(), ref, nil); err != nil || r.Digest != now || r.Reference != d.host+"/moving@"+now || r.Bytes == 0 {
		t.Errorf("resolved %+v: %v", r, err)
	}
	i, err := s.Acquire(t.Context(), ref, image.Options{Force: true})
	if err != nil || i.Digest != now || read(t, filepath.Join(i.Root.Lower[0], "v")) != "2" {
		t.Fatalf("with force: %+v %v", i, err)
	}
	i.Release()
	// What was pinned stays what it was.
	if i := acquire(t, s, d.host+"/moving@"+old); read(t, filepath.Join(i.Root.Lower[0], "v")) != "1" {
		t.Error("a digest means another image")
	}
	d.Close()
	if _, err := s.Acquire(t.Context(), ref, image.Options{Force: true}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), ref) {
		t.Errorf("force without a registry: %v", err)
	}
	acquire(t, s, ref)
	if i, err := s.Acquire(t.Context(), d.host+"/moving@"+old, image.Options{Force: true}); err != nil {
		t.Errorf("a digest needs no registry: %v", err)
	} else {
		i.Release()
	}
}

func TestListsAreReadByPlatform(t *testing.T) {
	d := newDepot(t, false)
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	variant := func(arch, content string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: built(t, func(c *v1.ConfigFile) { c.Architecture = arch }, layer(t, file("arch", content))),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	attestation := mutate.IndexAddendum{Add: built(t, nil, layer(t, file("a", "b"))), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}}
	index := mutate.AppendManifests(empty.Index, attestation, variant(other, "theirs"), variant(runtime.GOARCH, "ours"))
	nested := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index})
	s, _ := newStore(t, d, nil)
	for repository, what := range map[string]v1.ImageIndex{"multi:1": index, "nested:1": nested} {
		ref, digest := d.push(t, repository, what)
		if i := acquire(t, s, ref); i.Digest != digest || read(t, filepath.Join(i.Root.Lower[0], "arch")) != "ours" {
			t.Errorf("%s: %+v", repository, i)
		}
	}
	ref, _ := d.push(t, "foreign:1", mutate.AppendManifests(empty.Index, variant(other, "theirs")))
	if _, err := s.Acquire(t.Context(), ref, image.Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "linux/"+other) {
		t.Errorf("an image for another machine: %v", err)
	}
	ref, _ = d.push(t, "single:1", built(t, func(c *v1.ConfigFile) { c.Architecture = other }, layer(t, file("x", ""))))
	if _, err := s.Acquire(t.Context(), ref, image.Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "linux/"+other) {
		t.Errorf("a single image for another machine: %v", err)
	}
}

func TestCompressionsAreSeenByWhatALayerBeginsWith(t *testing.T) {
	d := newDepot(t, false)
	plain := archiveOf(t, file("f", "plain"))
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = z.Write(archiveOf(t, file("f", "zstd")))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	opener := func(b []byte) tarball.Opener {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	s, _ := newStore(t, d, nil)
	for want, l := range map[string]v1.Layer{
		"plain": raw(plain, "application/vnd.oci.image.layer.v1.tar"),
		"zstd": func() v1.Layer {
			l, err := tarball.LayerFromOpener(opener(packed.Bytes()), tarball.WithMediaType("application/vnd.oci.image.layer.v1.tar+zstd"))
			if err != nil {
				t.Fatal(err)
			}
			return l
		}(),
		"gzip": layer(t, file("f", "gzip")),
	} {
		ref, _ := d.push(t, want+":1", built(t, nil, l))
		if got := read(t, filepath.Join(acquire(t, s, ref).Root.Lower[0], "f")); got != want {
			t.Errorf("%s: %q", want, got)
		}
	}
	ref, _ := d.push(t, "xz:1", built(t, nil, raw([]byte("\xfd7zXZ\x00 and so on"), "application/vnd.oci.image.layer.v1.tar")))
	if _, err := s.Acquire(t.Context(), ref, image.Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "xz") {
		t.Error(err)
	}
}

func TestTLSAndMirrors(t *testing.T) {
	secure, plain := newDepot(t, true), newDepot(t, false)
	i := built(t, nil, layer(t, file("f", "x")))
	ref, digest := secure.push(t, "lib/app:1", i)
	secure.push(t, "library/debian:12", i)
	secure.push(t, "cache/library/alpine:3", i)
	plain.push(t, "team/tool:1", i)
	s, _ := newStore(t, plain, func(c *image.Config) {
		c.RootCAs = secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
		c.Mirrors = []string{
			secure.host + "=" + secure.host, "docker.io=" + plain.host, "docker.io=https://" + secure.host, "docker.io=" + secure.host + "/cache",
			"registry.invalid=http://" + plain.host + "/team",
		}
	})
	if i := acquire(t, s, ref); i.Digest != digest {
		t.Errorf("%+v", i)
	}
	for _, ref := range []string{"debian:12", "docker.io/library/alpine:3", "registry.invalid/tool:1"} {
		acquire(t, s, ref)
	}
	if _, err := s.Acquire(t.Context(), "registry.invalid/other:1", image.Options{}); err == nil || !strings.Contains(err.Error(), "mirror "+plain.host) {
		t.Errorf("the mirrors' answers are not told: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "private:1", built(t, nil, layer(t, file("f", "x"))))
	const user, password = "teacher", "s3cret-p4ss"
	d.behave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	s, _ := newStore(t, d, nil)
	_, err := s.Acquire(t.Context(), ref, image.Options{})
	if !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("without credentials: %v", err)
	}
	wrong := &image.Credentials{Username: user, Password: password + "!"}
	if _, err = s.Acquire(t.Context(), ref, image.Options{Credentials: wrong}); !fault.Is(err, fault.Forbidden) || strings.Contains(err.Error(), password) {
		t.Errorf("with wrong credentials: %v", err)
	}
	if text := fmt.Sprintf("%v %+v %#v", wrong, *wrong, *wrong); strings.Contains(text, password) {
		t.Errorf("printed: %s", text)
	}
	i, err := s.Acquire(t.Context(), ref, image.Options{Credentials: &image.Credentials{Username: user, Password: password}})
	if err != nil {
		t.Fatal(err)
	}
	i.Release()

	config := filepath.Join(t.TempDir(), "config.json")
	text, _ := json.Marshal(map[string]any{"auths": map[string]any{d.host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}}})
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = newStore(t, d, func(c *image.Config) { c.Credentials = config })
	acquire(t, s, ref)
}

// tokens are how most public registries authenticate.
func TestBearerTokens(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "public:1", built(t, nil, layer(t, file("f", "x"))))
	d.behave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/token":
			_, _ = io.WriteString(w, `{"token":"anonymous"}`)
		case r.Header.Get("Authorization") != "Bearer anonymous":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+d.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	})
	s, _ := newStore(t, d, nil)
	acquire(t, s, ref)
}

func TestProgressIsToldOnlyWhenThereIsAny(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "big:1", built(t, nil, layer(t, file("a", strings.Repeat("x", 1<<20))), layer(t, file("b", "y"))))
	s, _ := newStore(t, d, nil)
	var mu sync.Mutex
	var told []image.Progress
	listen := image.Options{Progress: func(p image.Progress) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, p)
	}}
	for range 2 {
		i, err := s.Acquire(t.Context(), ref, listen)
		if err != nil {
			t.Fatal(err)
		}
		i.Release()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) < 2 {
		t.Fatalf("%v", told)
	}
	first, last := told[0], told[len(told)-1]
	if first.Layers != 2 || first.Bytes == 0 || first.Finished || !last.Finished || last.LayersDone != 2 || last.BytesDone != first.Bytes {
		t.Errorf("%v", told)
	}
	if text := first.String(); !strings.HasPrefix(text, "Downloading image "+ref+": ") || !strings.Contains(text, "of 2 layers") {
		t.Error(text)
	}
}

func TestAPullGoesOnAsLongAsOneWaitsForIt(t *testing.T) {
	d := newDepot(t, false)
	ref, _ := d.push(t, "slow:1", built(t, nil, layer(t, file("f", "x"))))
	arrived, proceed := make(chan struct{}, 8), make(chan struct{})
	hold := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			arrived <- struct{}{}
			select {
			case <-proceed:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, r)
	}
	d.behave(hold)
	s, store := newStore(t, d, nil)
	impatient, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var first, second error
	wg.Go(func() { _, first = s.Acquire(impatient, ref, image.Options{}) })
	<-arrived
	joined := make(chan struct{})
	wg.Go(func() {
		close(joined)
		var i *image.Image
		if i, second = s.Acquire(t.Context(), ref, image.Options{}); second == nil {
			i.Release()
		}
	})
	<-joined
	leave()
	close(proceed)
	wg.Wait()
	if second != nil || d.count("GET manifests") > 2 {
		t.Errorf("who stayed got %v after %d manifests", second, d.count("GET manifests"))
	}
	if first != nil && !strings.Contains(first.Error(), "cancel") {
		t.Error(first)
	}

	// When nobody waits any more the pull ends, and nothing of it stays.
	d.push(t, "other:1", built(t, nil, layer(t, file("g", "y"))))
	proceed = make(chan struct{})
	d.behave(hold)
	impatient, leave = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	wg.Go(func() {
		_, err := s.Acquire(impatient, d.host+"/other:1", image.Options{})
		ended <- err
	})
	for len(arrived) > 0 {
		<-arrived
	}
	<-arrived
	leave()
	if err := <-ended; err == nil {
		t.Error("a cancelled pull succeeded")
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Run(stopped); err != nil { // waits for what is under way
		t.Error(err)
	}
	wg.Wait()
	if left, _ := os.ReadDir(filepath.Join(store, "work")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLocalSources(t *testing.T) {
	local := t.TempDir()
	i := built(t, func(c *v1.ConfigFile) { c.Config.WorkingDir = "w" }, layer(t, file("f", "local")))
	saveAll(t, local, i)
	s, _ := newStore(t, nil, func(c *image.Config) { c.LocalDirs = []string{local} })
	for _, ref := range []string{
		"oci-layout:" + local + "/layout", "oci-layout:" + local + "/layout:v1", "docker-archive:" + local + "/saved.tar",
		"docker-archive:" + local + "/saved.tar:course/app:1",
	} {
		t.Run(ref[:10], func(t *testing.T) {
			got := acquire(t, s, ref)
			if read(t, filepath.Join(got.Root.Lower[0], "f")) != "local" || got.Root.WorkDir != "/w" || got.Digest == "" {
				t.Errorf("%+v", got)
			}
			if r, err := s.Resolve(t.Context(), ref, nil); err != nil || r.Digest != got.Digest || r.Reference != ref {
				t.Errorf("%+v %v", r, err)
			}
		})
	}
	if err := os.MkdirAll(filepath.Join(local, "rootfs/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := acquire(t, s, "dir:"+local+"/rootfs"); !slices.Equal(got.Root.Lower, []string{filepath.Join(local, "rootfs")}) {
		t.Errorf("%+v", got)
	}
	// A file that was replaced is seen.
	saveAll(t, local, built(t, nil, layer(t, file("f", "replaced"))))
	if got := acquire(t, s, "docker-archive:"+local+"/saved.tar"); read(t, filepath.Join(got.Root.Lower[0], "f")) != "replaced" {
		t.Error("an archive that was replaced is not seen")
	}
	for ref, want := range map[string]string{
		"oci-layout:" + local + "/layout:v2":                `no image "v2"`,
		"docker-archive:" + local + "/saved.tar:course/x:1": `no image "course/x:1"`,
		"docker-archive:" + local + "/none.tar":             "does not exist",
	} {
		if _, err := s.Acquire(t.Context(), ref, image.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestWhatIsHeldIsListedByNameAndDigest(t *testing.T) {
	d := newDepot(t, false)
	ref, old := d.push(t, "moving:latest", built(t, nil, layer(t, file("v", "1"))))
	s, _ := newStore(t, d, nil)
	if got := s.Held(10); len(got) != 0 {
		t.Errorf("an empty store holds %v", got)
	}
	acquire(t, s, ref)
	if got := s.Held(10); !slices.Equal(got, []string{ref, old}) {
		t.Errorf("%v, want %v", got, []string{ref, old})
	}
	_, now := d.push(t, "moving:latest", built(t, nil, layer(t, file("v", "2"))))
	i, err := s.Acquire(t.Context(), ref, image.Options{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	i.Release()
	want := []string{ref, old, now}
	slices.Sort(want)
	if got := s.Held(10); !slices.Equal(got, want) { // the name means the new one, the old one can still be had by its digest
		t.Errorf("%v, want %v", got, want)
	}
	if got := s.Held(1); len(got) != 1 {
		t.Errorf("%d names, want 1", len(got))
	}
}
