//go:build linux && cgo

package orchestrator_test

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/certs"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	nodeagent "rockpool/internal/orchestrator/node"
)

// tlsOf is what an agent is told of its certificate.
func tlsOf(f certs.Files) orchestrator.TLSConfig {
	return orchestrator.TLSConfig{CAFile: f.CA, CertFile: f.Cert, KeyFile: f.Key, VerifyServerHostname: true, HTTP: true, VerifyHTTPSClient: true}
}

// runs runs an agent until stop is called.
func runs(t *testing.T, cfg orchestrator.AgentConfig) (a *orchestrator.Agent, stop func()) {
	t.Helper()
	cfg.Log = logging.Discard()
	a, err := orchestrator.NewAgent(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	select {
	case <-a.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("the agent is not ready")
	}
	return a, stop
}

// replace puts one party's files where another's were.
func replace(t *testing.T, old, with certs.Files) {
	t.Helper()
	for to, from := range map[string]string{old.CA: with.CA, old.Cert: with.Cert, old.Key: with.Key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestANodeJoinsByCertificateAndIntroductionAndOutlivesBoth(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	p := newPKI(t)
	ours, theirs, people := p.files(t, certs.Server), p.files(t, certs.Client), p.files(t, certs.CLI)
	at := freePort(t)
	server := orchestrator.AgentConfig{Role: orchestrator.ServerOnly, DataDir: t.TempDir(), Address: at, Name: "one", Token: "root", TLS: tlsOf(ours),
		Server: orchestrator.ServerOptions{Cluster: orchestrator.ClusterConfig{StrictIntroduction: true}}}
	sa, stopServer := runs(t, server)
	client := func(f certs.Files) *api.Client {
		t.Helper()
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		store, err := certs.Load(f, "", true)
		if err != nil {
			t.Fatal(err)
		}
		transport.TLSClientConfig = store.HTTPDialer()
		c, err := api.NewClient(&api.Config{Address: "https://" + at, SecretID: "root", HttpClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := client(people)
	intro, _, err := c.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{NodeName: "alpha"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	na, _ := runs(t, orchestrator.AgentConfig{
		Role: orchestrator.NodeOnly, DataDir: t.TempDir(), Address: "127.0.0.1:0", Name: "alpha", MockDriver: true, RemoveOnStop: true,
		TLS:  tlsOf(theirs),
		Node: orchestrator.NodeOptions{Servers: []string{"https://localhost:" + port}, JoinToken: intro.JWT}, // a name, not an address
	})
	j := &api.Job{ID: new("mock"), Type: new("batch"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
		Tasks: []*api.Task{{Name: "t", Driver: "mock", Config: map[string]any{}}}}}}
	if _, _, err := c.Jobs().Register(j, nil); err != nil {
		t.Fatal(err)
	}
	alloc := running(t, c, "mock")
	reachable := func(c *api.Client) func() bool {
		return func() bool {
			_, err := c.Allocations().Stats(alloc, nil)
			return err == nil
		}
	}
	eventually(t, "the node answers over its own connection", reachable(c))

	// Another authority takes over while both run. The server is gone for a moment; the node finds it again by its new certificate, with an identity of its own.
	next := newPKI(t)
	replace(t, ours, next.files(t, certs.Server))
	replace(t, theirs, next.files(t, certs.Client))
	for _, a := range []*orchestrator.Agent{sa, na} {
		if err := a.ReloadCertificates(); err != nil {
			t.Fatal(err)
		}
	}
	renewed := client(next.files(t, certs.CLI))
	if _, err := renewed.Agent().Self(); err != nil {
		t.Errorf("the new authority's holder: %v", err)
	}
	stranger := client(people)
	if _, err := stranger.Agent().Self(); err == nil {
		t.Error("the old authority's holder is let in")
	}
	stopServer()
	runs(t, server)
	eventually(t, "the node answers again", reachable(renewed))
	if got := running(t, renewed, "mock"); got.ID != alloc.ID {
		t.Errorf("another allocation runs: %s, not %s", got.ID, alloc.ID)
	}
}

func TestANodeSaysNothingToAServerThatIsANode(t *testing.T) {
	p := newPKI(t)
	files := p.files(t, certs.Client)
	for _, strict := range []bool{false, true} {
		store, err := certs.Load(files, "", strict)
		if err != nil {
			t.Fatal(err)
		}
		asked := false
		h := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
		h.Listener = tls.NewListener(h.Listener, store.HTTPListener(true)) // a node's certificate serves its own API
		h.Config.ErrorLog = log.New(io.Discard, "", 0)
		h.Start()
		transport := &http.Transport{TLSClientConfig: store.HTTPDialer()}
		remote, err := nodeagent.NewRemote([]string{strings.Replace(h.URL, "http://", "https://", 1)}, nodeagent.Identity{ID: "n", Secret: "s"}, "token", &http.Client{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Register(t.Context(), newModelNode()); err == nil || !strings.Contains(err.Error(), certs.ErrRole.Error()) {
			t.Errorf("strict %v: %v", strict, err)
		}
		if conn, err := remote.Connect(t.Context(), strings.Replace(h.URL, "http://", "https://", 1)); err == nil {
			conn.Close()
			t.Errorf("strict %v: a connection is opened", strict)
		}
		if asked {
			t.Error("the node's secret was sent")
		}
		transport.CloseIdleConnections()
		h.Close()
	}
}
