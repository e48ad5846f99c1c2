package orchestrator_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
)

// logBook keeps a log.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Nothing that a server says to somebody who may ask it everything holds a secret: no answer, event or line of its log, nor any file that it keeps, except what
// is there to bring secrets back.
func TestNoSecretIsTold(t *testing.T) {
	book := &logBook{}
	log, err := logging.New(book, "trace", "JSONFormatter")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kek := filepath.Join(t.TempDir(), "kek")
	kekText := strings.Repeat("the-key-of-keys-", 4)
	if err := os.WriteFile(kek, []byte(kekText), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := orchestrator.ServerConfig{DataDir: dir, KeyFile: kek, Log: log, AuditFile: filepath.Join(dir, "audit.log")}
	cfg.ACL, cfg.JoinToken = true, "the-token-to-join-with"
	c := start(t, cfg)
	first, _, err := c.api.ACLTokens().Bootstrap(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.token, c.api = first.SecretID, c.client(first.SecretID)
	c.policy("p", `namespace "default" { policy = "write" }`)
	tok := c.tokenOf("p")
	secrets := map[string]string{"the first token": first.SecretID, "a token": tok.SecretID, "the token to join with": cfg.JoinToken, "the key of keys": kekText}

	v := api.NewVariable("app/db")
	secrets["a variable"] = "the-password-" + ident.New()
	v.Items["password"] = secrets["a variable"]
	if _, _, err := c.api.Variables().Create(v, nil); err != nil {
		t.Fatal(err)
	}
	n := newModelNode()
	secrets["a node's secret"] = n.SecretID
	f := c.join(n)
	c.register(job("10-a"))
	alloc := c.running("10-a", 1)[0]
	intro := struct{ JWT string }{}
	if _, err := c.api.Raw().Write("/v1/acl/identity/client-introduction-token", map[string]any{"TTL": "5m"}, &intro, nil); err != nil {
		t.Fatal(err)
	}
	seed := c.server.IntroductionKey().Seed
	secrets["an introduction token"] = intro.JWT
	secrets["the introduction key in base64"], secrets["the introduction key in hex"] = base64.StdEncoding.EncodeToString(seed), hex.EncodeToString(seed)
	once, _, err := c.api.ACLTokens().UpsertOneTimeToken(nil)
	if err != nil {
		t.Fatal(err)
	}
	secrets["a one-time token"] = once.OneTimeSecretID

	// What is refused is logged too.
	f.secret = ident.New()
	secrets["a wrong node's secret"] = f.secret
	f.put("heartbeat", struct{}{})
	wrong := ident.New()
	secrets["a wrong token"] = wrong
	_, _, _ = c.client(wrong).Jobs().List(nil)
	f.secret = n.SecretID

	told := func(where string, data []byte) {
		t.Helper()
		for what, s := range secrets {
			if bytes.Contains(data, []byte(s)) {
				t.Errorf("%s is told by %s", what, where)
			}
		}
	}
	get := func(path string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, c.http.URL+path, nil)
		r.Header.Set("X-Nomad-Token", first.SecretID)
		resp, err := c.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if strings.Contains(path, "/stream") {
			time.AfterFunc(time.Second, cancel)
		}
		data, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusNotFound && len(data) == 0 || resp.StatusCode == http.StatusMethodNotAllowed {
			t.Errorf("there is no route %s", path)
		}
		told(path, data)
		for k, v := range resp.Header {
			told(path+"'s header "+k, []byte(strings.Join(v, " ")))
		}
	}
	for _, path := range []string{
		"/v1/agent/self", "/v1/agent/members", "/v1/agent/health", "/v1/agent/host", "/v1/agent/schedulers", "/v1/metrics", "/v1/metrics?format=prometheus", "/v1/status/leader",
		"/v1/operator/raft/configuration", "/v1/operator/autopilot/configuration", "/v1/operator/scheduler/configuration", "/v1/operator/keyring/keys",
		"/v1/acl/tokens", "/v1/acl/token/" + tok.AccessorID, "/v1/acl/policies", "/v1/acl/roles", "/v1/nodes?resources=true", "/v1/node/" + n.ID, "/v1/node/" + n.ID + "/allocations",
		"/v1/jobs?meta=true", "/v1/job/10-a", "/v1/job/10-a/versions?diffs=true", "/v1/job/10-a/submission", "/v1/allocations?resources=true", "/v1/allocation/" + alloc.ID, "/v1/evaluations",
		"/v1/vars?prefix=", "/v1/namespaces", "/v1/quotas", "/v1/services", "/v1/deployments", "/v1/scaling/policies", "/v1/agent/pprof/goroutine?debug=2",
		"/v1/event/stream?topic=*&namespace=*&index=1",
	} {
		get(path)
	}
	c.stop()
	book.mu.Lock()
	told("the log", book.b.Bytes())
	if book.b.Len() == 0 {
		t.Error("nothing was logged")
	}
	book.mu.Unlock()
	// On disk: of tokens there are hashes, variables are sealed. A node's secret, what is spent once and the key of introductions are as they are; their files are the
	// server's own.
	for what := range secrets {
		switch what {
		case "a node's secret", "the introduction key in base64", "the introduction key in hex":
			delete(secrets, what)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		told(path, data)
		closed := func(path string) bool {
			info, err := os.Stat(path)
			return err == nil && info.Mode().Perm()&0o077 == 0
		}
		if parent := filepath.Dir(path); !closed(path) && (parent == dir || !closed(parent)) {
			t.Errorf("%s can be read by others", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
