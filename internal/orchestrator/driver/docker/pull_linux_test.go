package docker_test

import (
	"encoding/base64"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/client"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
)

// store is a registry without TLS, which engines accept on the loopback.
type store struct {
	*httptest.Server
	image v1.Image

	mu        sync.Mutex
	manifests int           // asked for by the engine
	password  string        // "" = anybody may pull
	hold      chan struct{} // blobs wait for it; nil = they do not
}

func newStore(t *testing.T) *store {
	t.Helper()
	inner := registry.New(registry.Logger(stdlog.New(io.Discard, "", 0)))
	s := &store{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		password, hold := s.password, s.hold
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			s.manifests++
		}
		s.mu.Unlock()
		if _, got, _ := r.BasicAuth(); password != "" && got != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if hold != nil && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			select {
			case <-hold:
			case <-r.Context().Done():
				return
			}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	image, err := shellImage()
	if err != nil {
		t.Fatal(err)
	}
	s.image = image
	return s
}

func (s *store) ref(repo string) string {
	return strings.TrimPrefix(s.URL, "http://") + "/" + repo + ":1"
}

// push puts an image that says which version it is into the registry.
func (s *store) push(t *testing.T, repo, version string) string {
	t.Helper()
	file, err := s.image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config := *file.Config.DeepCopy()
	config.Env = append(config.Env, "VERSION="+version)
	image, err := mutate.Config(s.image, config)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(s.ref(repo))
	if err == nil {
		err = remote.Write(ref, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.ref(repo)
}

func (s *store) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (n node) version(task driver.Task) string {
	return strings.TrimSpace(n.sh(task, `echo $VERSION`).out)
}

func (n node) drop(ref string) {
	n.Cleanup(func() {
		_, _ = n.engine.api.ImageRemove(n.engine.context(), ref, client.ImageRemoveOptions{Force: true})
	})
}

func TestForcePull(t *testing.T) {
	n, s := newNode(t, docker.Config{}), newStore(t)
	ref := s.push(t, "force", "one")
	n.drop(ref)
	var notes []string
	cfg := n.config(map[string]any{"image": ref})
	cfg.Emit = func(note string) { notes = append(notes, note) }
	if got := n.version(n.start(cfg)); got != "one" {
		t.Errorf("version %q", got)
	}
	if len(notes) < 2 || !strings.Contains(notes[0], ref) {
		t.Errorf("notes %q", notes)
	}
	s.push(t, "force", "two")
	if got := n.version(n.start(n.config(map[string]any{"image": ref}))); got != "one" {
		t.Errorf("version %q though the engine has the image", got)
	}
	if got := n.version(n.start(n.config(map[string]any{"image": ref, "force_pull": true}))); got != "two" {
		t.Errorf("version %q though the pull was forced", got)
	}
}

func TestConcurrentPullsAreOne(t *testing.T) {
	n, s := newNode(t, docker.Config{}), newStore(t)
	ref := s.push(t, "many", "one")
	n.drop(ref)
	hold := make(chan struct{})
	s.set(func() { s.hold = hold; s.manifests = 0 })
	const tasks = 4
	waiting := make(chan string, 10*tasks)
	var wg sync.WaitGroup
	for range tasks {
		cfg := n.config(map[string]any{"image": ref})
		cfg.Emit = func(note string) { waiting <- note }
		wg.Go(func() {
			if _, err := n.driver.Start(t.Context(), cfg); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() { n.cleanUp(cfg) })
	}
	select {
	case <-waiting: // one has begun; the others find no image, as nothing arrives
	case <-time.After(patience):
		t.Fatal("nobody pulls")
	}
	close(hold)
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manifests > 2 { // of an index, where there is one, and of the image
		t.Errorf("the manifest was asked for %d times", s.manifests)
	}
}

func TestCredentials(t *testing.T) {
	s := newStore(t)
	host := strings.TrimPrefix(s.URL, "http://")
	file := filepath.Join(t.TempDir(), "config.json")
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(t.TempDir(), "none.json")
	if err := os.WriteFile(none, []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	refs := []string{s.push(t, "file", "one"), s.push(t, "job", "one"), s.push(t, "nobody", "one")}
	s.set(func() { s.password = "secret" })
	with := newNode(t, docker.Config{Credentials: file})
	with.drop(refs[0])
	with.start(with.config(map[string]any{"image": refs[0]}))
	without := newNode(t, docker.Config{Credentials: none})
	without.drop(refs[1])
	without.start(without.config(map[string]any{"image": refs[1], "auth": []any{map[string]any{"username": "me", "password": "secret"}}}))
	_, err := without.driver.Start(t.Context(), without.config(map[string]any{"image": refs[2]}))
	if err == nil || !strings.Contains(err.Error(), refs[2]) || strings.Contains(err.Error(), "secret") {
		t.Errorf("without credentials: %v", err)
	}
}

func TestASlowPullEnds(t *testing.T) {
	n, s := newNode(t, docker.Config{}), newStore(t)
	ref := s.push(t, "slow", "one")
	n.drop(ref)
	hold := make(chan struct{})
	defer close(hold)
	s.set(func() { s.hold = hold })
	_, err := n.driver.Start(t.Context(), n.config(map[string]any{"image": ref, "image_pull_timeout": "300ms"}))
	if err == nil || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), "image_pull_timeout") {
		t.Errorf("%v", err)
	}
}
