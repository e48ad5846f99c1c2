package orchestrator_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/orchestrator"
	"rockpool/internal/peers"
)

// A list tells jobs whole to those alone who may read them one by one.
func TestJobsAreListedWhole(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	c.policy("list", `namespace "default" { capabilities = ["list-jobs"] }`)
	c.policy("read", `namespace "default" { capabilities = ["list-jobs", "read-job"] }`)
	c.register(job("10-a"))
	for name, want := range map[string]struct{ asked, whole bool }{"list": {true, false}, "read": {true, true}, "read alone": {false, false}} {
		policy, params := name, map[string]string{"rockpool_jobs": "true"}
		if !want.asked {
			policy, params = "read", nil
		}
		var lines []struct {
			ID  string
			Job *api.Job
		}
		if _, err := c.client(c.tokenOf(policy).SecretID).Raw().Query("/v1/jobs", &lines, &api.QueryOptions{Params: params}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(lines) != 1 || lines[0].ID != "10-a" || (lines[0].Job != nil) != want.whole {
			t.Errorf("%s: got %+v", name, lines)
		} else if j := lines[0].Job; want.whole && (*j.ID != "10-a" || len(j.TaskGroups) == 0 || j.JobModifyIndex == nil) {
			t.Errorf("%s: the job is %+v", name, j)
		}
	}
}

// What docs/gateway-extensions.md has gateways be given is enough for their leases, and less is not.
func TestRightsOfSeveralGateways(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	c := bootstrapped(t, orchestrator.ServerConfig{KeyFile: file})
	c.policy("gateway", `namespace "default" { variables { path "rockpool/gateways/*" { capabilities = ["list", "read", "write", "destroy"] } } }`)
	c.policy("reader", `namespace "default" { variables { path "rockpool/gateways/*" { capabilities = ["list", "read"] } } }`)
	leases := func(policy string) *nomad.Leases {
		client, err := nomad.New(nomad.Options{Address: c.http.URL, Token: c.tokenOf(policy).SecretID, Namespace: "default"}, logging.Discard())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		return nomad.NewLeases(client, peers.TTL)
	}
	ctx := t.Context()
	one, two := leases("gateway"), leases("gateway")
	held, ok, err := one.Acquire(ctx, "lead", map[string]string{"url": "http://a"})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, ok, err := two.Acquire(ctx, "lead", map[string]string{"url": "http://b"}); err != nil || ok {
		t.Errorf("what is held was given: %v %v", ok, err)
	}
	if names, err := two.Names(ctx); err != nil || len(names) != 1 || !names["lead"].Held {
		t.Errorf("the names are %v, %v", names, err)
	}
	if items, err := two.Items(ctx, "lead"); err != nil || items["url"] != "http://a" {
		t.Errorf("the items are %v, %v", items, err)
	}
	if err := held.Renew(ctx); err != nil {
		t.Error(err)
	}
	if err := held.Release(ctx); err != nil {
		t.Error(err)
	}
	if names, err := two.Names(ctx); err != nil || len(names) != 0 {
		t.Errorf("after the release: %v, %v", names, err)
	}
	if _, _, err := leases("reader").Acquire(ctx, "lead", map[string]string{"url": "http://c"}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a reader: %v", err)
	}
}
