package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"rockpool/tests/platform"
)

var images = []attack{
	{id: "J1", what: "layers that reach out: .., links, hard links, devices, setuid", script: reachingLayers},
	{id: "J2", what: "a layer of 40 GB in 40 MB", script: refusedImage("bomb", bomb)},
	{id: "J2", what: "a manifest of 100 000 layers", script: refusedImage("layers", nil)},
	{id: "J2", what: "a layer of another digest", script: refusedImage("digest", nil)},
	{id: "J2", what: "a layer that is fetched from elsewhere", script: refusedImage("foreign", nil)},
	{id: "J3", what: "another image under the same tag", script: movedTag},
	{id: "J4", what: "whiteouts of what lies above", script: whiteouts},
	{id: "H5", what: "image references to services of the node and the cloud", script: forgery},
}

const imageEnvironment = 18

// registryServer is a registry on loopback, which the service is told to trust. It answers some repositories as no honest one would.
type registryServer struct {
	*httptest.Server
	elsewhere atomic.Int64 // requests to what no image may lead to
}

func newRegistry() *registryServer {
	r := &registryServer{}
	honest := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasPrefix(req.URL.Path, "/elsewhere"):
			r.elsewhere.Add(1)
		case strings.HasPrefix(req.URL.Path, "/v2/redirects/"):
			http.Redirect(w, req, "http://169.254.169.254/latest/meta-data", http.StatusTemporaryRedirect)
		case strings.HasPrefix(req.URL.Path, "/v2/layers/manifests/"):
			var b strings.Builder
			fmt.Fprintf(&b, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"size":2,"digest":"sha256:%s"},"layers":[`, types.DockerManifestSchema2, types.DockerConfigJSON, strings.Repeat("a", 64))
			for i := range 100_000 {
				if i > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(&b, `{"mediaType":%q,"size":1,"digest":"sha256:%064x"}`, types.DockerLayer, i)
			}
			w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
			_, _ = io.WriteString(w, b.String()+"]}")
		case strings.HasPrefix(req.URL.Path, "/v2/digest/blobs/") && req.Method == http.MethodGet:
			_, _ = io.WriteString(w, "something else")
		default:
			honest.ServeHTTP(w, req)
		}
	}))
	return r
}

func (r *registryServer) host() string { return strings.TrimPrefix(r.URL, "http://") }

// push makes an image of layers and gives its reference.
func (r *registryServer) push(repository string, layers ...v1.Layer) (string, error) {
	ref, err := name.ParseReference(r.host()+"/"+repository+":latest", name.Insecure)
	if err != nil {
		return "", err
	}
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, image)
}

// member is one entry of a layer.
type member struct {
	name, link, text string
	kind             byte
	mode             int64
}

func layer(members ...member) v1.Layer {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, m := range members {
		if m.kind == 0 {
			m.kind = tar.TypeReg
		}
		h := &tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.kind, Mode: m.mode | 0o755, Size: int64(len(m.text)), Devmajor: 1, Devminor: 1}
		_ = t.WriteHeader(h) // into memory, and the names are ours
		_, _ = io.WriteString(t, m.text)
	}
	_ = t.Close()
	return static.NewLayer(b.Bytes(), types.DockerUncompressedLayer)
}

// base is a root file system without a single program.
func base(text string) v1.Layer {
	return layer(member{name: "etc/", kind: tar.TypeDir}, member{name: "etc/passwd", text: "root:x:0:0::/root:/\nuser:x:1000:1000::/:/\n"}, member{name: "version", text: text})
}

// stand makes an environment of one runner and waits for it.
func (a *arena) stand(ctx context.Context, image string) error {
	if err := a.PutEnvironment(ctx, imageEnvironment, platform.Environment{PrewarmingPoolSize: 1, CPULimit: 10, MemoryLimit: 64, Image: image}); err != nil {
		return err
	}
	return await(ctx, func() (bool, error) {
		all, err := a.Statistics(ctx)
		return all["18"].IdleRunners == 1, err
	})
}

// drop deletes the environment; one whose image was refused is not there.
func (a *arena) drop(ctx context.Context) error {
	err := a.DeleteEnvironment(ctx, imageEnvironment)
	if refused, ok := errors.AsType[*platform.StatusError](err); ok && refused.Status == 404 {
		return nil
	}
	return err
}

func reachingLayers(ctx context.Context, a *arena, _ string) (err error) {
	file := a.canaries + "/file"
	ref, err := a.registry.push("reaching", base("one"), layer(
		member{name: up + file, text: "attacked"}, member{name: file, text: "attacked"},
		member{name: "dir", kind: tar.TypeSymlink, link: a.canaries}, member{name: "dir/file", text: "attacked"}, member{name: "dir/new", text: "attacked"},
		member{name: "hard", kind: tar.TypeLink, link: file}, member{name: "hard", text: "attacked"}, member{name: "hard2", kind: tar.TypeLink, link: up + file},
		member{name: "mem", kind: tar.TypeChar}, member{name: "fifo", kind: tar.TypeFifo}, member{name: "root", mode: 0o6755, text: "#!/bin/sh\n"}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.drop(ctx)) }()
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	standErr := a.stand(short, ref)
	if standErr != nil && short.Err() == nil { // it may be refused, or be harmless
		return standErr
	}
	if standErr == nil {
		id, err := a.Claim(ctx, imageEnvironment, time.Minute)
		if err != nil {
			return err
		}
		for _, path := range []string{"/dir/file", "/hard", "/hard2", file, "/mem", "/proc/self/root" + file} {
			if data, err := a.Download(ctx, id, path); err == nil && strings.Contains(string(data), a.secret) {
				return fmt.Errorf("%s shows a file of the node", path)
			}
		}
		_ = a.Copy(ctx, id, nil, platform.File{Path: "/hard", Content: []byte("attacked")}, platform.File{Path: "/dir/file", Content: []byte("attacked")})
	}
	return a.unharmed()
}

// bomb is a layer of one file of 40 GB of zeroes; its compressed form repeats one gzip member.
func bomb() v1.Layer {
	const piece, times = 16 << 20, 2560
	var b, one bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	_ = t.WriteHeader(&tar.Header{Name: "zeroes", Typeflag: tar.TypeReg, Mode: 0o644, Size: piece * times})
	_ = t.Flush() // an error of the tar alone: the file is not there yet
	_ = z.Close()
	z = gzip.NewWriter(&one)
	_, _ = z.Write(make([]byte, piece))
	_ = z.Close()
	for range times {
		b.Write(one.Bytes())
	}
	return static.NewLayer(b.Bytes(), types.DockerLayer)
}

// refusedImage asks for an image that must not become a runner, and watches what the attempt takes.
func refusedImage(repository string, made func() v1.Layer) func(context.Context, *arena, string) error {
	return func(ctx context.Context, a *arena, _ string) (err error) {
		ref := a.registry.host() + "/" + repository + ":latest"
		switch {
		case made != nil:
			ref, err = a.registry.push(repository, made())
		case repository == "digest":
			ref, err = a.registry.push(repository, base("two"))
		case repository == "foreign":
			image, foreignErr := mutate.Append(empty.Image, mutate.Addendum{Layer: base("three"), URLs: []string{a.registry.URL + "/elsewhere/layer"}, MediaType: types.DockerForeignLayer})
			parsed, parseErr := name.ParseReference(ref, name.Insecure)
			if err = errors.Join(foreignErr, parseErr); err == nil {
				err = remote.Write(parsed, image)
			}
		}
		if err != nil {
			return err
		}
		before, err := a.diskUsed()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.drop(ctx)) }()
		short, cancel := context.WithTimeout(ctx, 4*time.Second)
		defer cancel()
		if err := a.stand(short, ref); err == nil {
			return errors.New("a runner was made of it")
		}
		if err := a.drop(ctx); err != nil {
			return err
		}
		if n := a.registry.elsewhere.Load(); n > 0 {
			return fmt.Errorf("%d requests went elsewhere", n)
		}
		return await(ctx, func() (bool, error) {
			now, err := a.diskUsed()
			return now-before < 64<<20, err
		})
	}
}

// movedTag pushes another image under a tag that an environment uses. Its runners change when the environment is put again, and not before.
func movedTag(ctx context.Context, a *arena, _ string) (err error) {
	ref, err := a.registry.push("moved", base("first"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.drop(ctx)) }()
	expect := func(want string) error {
		if err := a.stand(ctx, ref); err != nil {
			return err
		}
		return await(ctx, func() (bool, error) {
			id, err := a.Claim(ctx, imageEnvironment, time.Minute)
			if err != nil {
				return false, err
			}
			data, err := a.Download(ctx, id, "/version")
			return string(data) == want, errors.Join(err, a.Release(ctx, id))
		})
	}
	if err := expect("first"); err != nil {
		return err
	}
	if _, err := a.registry.push("moved", base("second")); err != nil {
		return err
	}
	for range 3 {
		id, err := a.Claim(ctx, imageEnvironment, time.Minute)
		if err != nil {
			return err
		}
		data, err := a.Download(ctx, id, "/version")
		if err = errors.Join(err, a.Release(ctx, id)); err != nil || string(data) != "first" {
			return fmt.Errorf("a runner made after the push has %q, %w", data, err)
		}
	}
	return expect("second")
}

func whiteouts(ctx context.Context, a *arena, _ string) (err error) {
	ref, err := a.registry.push("whiteouts", base("four"), layer(member{name: up + a.canaries + "/.wh.file"}, member{name: a.canaries + "/.wh.file"},
		member{name: "link", kind: tar.TypeSymlink, link: a.canaries}, member{name: "link/.wh.file"}, member{name: "link/.wh..wh..opq"},
		member{name: ".wh..."}, member{name: ".wh."}, member{name: "etc/.wh.."}, member{name: "etc/.wh...", text: "x"}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.drop(ctx)) }()
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := a.stand(short, ref); err != nil && short.Err() == nil {
		return err
	}
	return a.unharmed()
}

// forgery names services instead of registries. The listener stands for one of the node's own.
func forgery(ctx context.Context, a *arena, _ string) (err error) {
	var reached atomic.Int64
	secret := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer secret.Close()
	own := strings.TrimPrefix(secret.URL, "http://")
	for _, image := range []string{own + "/x", strings.Replace(own, "127.0.0.1", "localhost", 1) + "/x", "169.254.169.254/x", "[::1]:80/x", "0.0.0.0:80/x", "127.1:80/x", "2130706433/x",
		a.registry.host() + "/redirects/x", "dir:/etc", "dir:/", "oci-layout:/etc", "docker-archive:/etc/shadow", "/etc", "file:/etc/passwd"} {
		short, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
		standErr := a.stand(short, image)
		cancel()
		if standErr == nil {
			err = fmt.Errorf("%s became a runner", image)
		}
		if err = errors.Join(err, a.drop(ctx)); err != nil {
			return err
		}
	}
	if n := reached.Load(); n > 0 {
		return fmt.Errorf("a service of the node was asked %d times", n)
	}
	return nil
}
