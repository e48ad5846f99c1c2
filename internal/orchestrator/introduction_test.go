package orchestrator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/introduction"
	"rockpool/internal/orchestrator/model"
)

// newNode is one that no server knows.
func newNode(name string) *model.Node {
	return &model.Node{ID: ident.New(), SecretID: ident.New(), Name: name, Datacenter: "dc1", NodePool: "default", Status: model.NodeReady,
		Resources: model.NodeResources{CPU: 1, MemoryMB: 1, DiskMB: 1}}
}

// register makes a node known by a token, as its agent does, and returns the status code.
func register(t *testing.T, url, token string, n *model.Node) int {
	t.Helper()
	b, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url+"/v1/internal/node/"+n.ID+"/register", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Rockpool-Node-Secret", n.SecretID)
	r.Header.Set("X-Nomad-Token", token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func single(t *testing.T, token string, strict bool) (*orchestrator.Server, *httptest.Server) {
	t.Helper()
	s, err := orchestrator.NewServer(orchestrator.ServerConfig{Name: "one", Token: token, Cluster: orchestrator.ClusterConfig{StrictIntroduction: strict}})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s.Handler())
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); h.Close() })
	if err := s.WaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
	return s, h
}

func TestANodeIsIntroduced(t *testing.T) {
	s, h := single(t, "root", false)
	c, err := api.NewClient(&api.Config{Address: h.URL, SecretID: "root"})
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name, pool string) string {
		t.Helper()
		out, _, err := c.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{NodeName: name, NodePool: pool}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out.JWT
	}
	expect := func(what string, token string, n *model.Node, status int) {
		t.Helper()
		if got := register(t, h.URL, token, n); got != status {
			t.Errorf("%s: %d, want %d", what, got, status)
		}
	}
	if _, _, err := c.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{TTL: time.Hour}, nil); err == nil {
		t.Error("a token that is valid for an hour is made")
	}
	nobody, err := api.NewClient(&api.Config{Address: h.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := nobody.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{}, nil); err == nil {
		t.Error("a stranger makes a token")
	}

	n := newNode("alpha")
	token := issue("alpha", "")
	expect("no token", "", n, 403)
	expect("a token for another name", issue("beta", ""), n, 403)
	expect("a token for another pool", issue("alpha", "gpu"), n, 403)
	expect("the token", token, n, 200)
	expect("once more, after an answer that was lost", token, n, 200)
	expect("without it: the node has an identity of its own", "", n, 200)
	thief := *n
	thief.SecretID = ident.New()
	expect("the same node with another secret", token, &thief, 403)
	expect("the same with the management token", "root", &thief, 403)
	expect("another node with the same token", token, newNode("alpha"), 403)

	key := s.IntroductionKey()
	sign := func(seed []byte, id string, at time.Time, region string) string {
		t.Helper()
		jwt, err := introduction.Sign(id, seed, introduction.Claims{ID: ident.New(), Region: region, NodePool: "default"}, at, introduction.DefaultTTL)
		if err != nil {
			t.Fatal(err)
		}
		return jwt
	}
	now := time.Now()
	expect("one that has expired", sign(key.Seed, key.ID, now.Add(-time.Hour), "global"), newNode("x"), 403)
	expect("one that is not valid yet", sign(key.Seed, key.ID, now.Add(time.Hour), "global"), newNode("x"), 403)
	expect("one of another region", sign(key.Seed, key.ID, now, "moon"), newNode("x"), 403)
	expect("one signed with another key", sign(bytes.Repeat([]byte{1}, 32), key.ID, now, "global"), newNode("x"), 403)
	good := sign(key.Seed, key.ID, now, "global")
	parts := strings.Split(good, ".")
	const none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0" // {"alg":"none","typ":"JWT"}
	expect("one that is not signed", none+"."+parts[1]+".", newNode("x"), 403)
	expect("one that says it is not signed", none+"."+parts[1]+"."+parts[2], newNode("x"), 403)
	expect("one whose claims were changed", parts[0]+"."+strings.ToUpper(parts[1][:1])+parts[1][1:]+"A."+parts[2], newNode("x"), 403)
	expect("a good one for any name", good, newNode("x"), 200)

	// Many with one token: exactly one gets in.
	one := issue("", "")
	var wg sync.WaitGroup
	in := make(chan int, 8)
	for range 8 {
		wg.Go(func() { in <- register(t, h.URL, one, newNode("race")) })
	}
	wg.Wait()
	close(in)
	joined := 0
	for status := range in {
		if status == 200 {
			joined++
		}
	}
	if joined != 1 {
		t.Errorf("%d nodes joined by one token", joined)
	}
}

func TestWhoMayJoinWithoutTokens(t *testing.T) {
	_, open := single(t, "", false)
	if got := register(t, open.URL, "", newNode("a")); got != 200 {
		t.Errorf("without access control: %d", got)
	}
	_, strict := single(t, "", true)
	if got := register(t, strict.URL, "", newNode("a")); got != 403 {
		t.Errorf("strict: %d", got)
	}
	c, err := api.NewClient(&api.Config{Address: strict.URL})
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := c.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := register(t, strict.URL, out.JWT, newNode("a")); got != 200 {
		t.Errorf("strict, with a token: %d", got)
	}
}
