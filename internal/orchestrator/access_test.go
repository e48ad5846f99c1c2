package orchestrator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

// bootstrapped is a cluster whose callers are asked who they are, and its first token is that of c.api.
func bootstrapped(t *testing.T, cfg orchestrator.ServerConfig) *cluster {
	t.Helper()
	cfg.ACL, cfg.JoinToken = true, "join"
	c := start(t, cfg)
	tok, _, err := c.api.ACLTokens().Bootstrap(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.token, c.api = tok.SecretID, c.client(tok.SecretID)
	return c
}

func (c *cluster) policy(name, rules string) {
	c.tb.Helper()
	if _, err := c.api.ACLPolicies().Upsert(&api.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *cluster) tokenOf(policies ...string) *api.ACLToken {
	c.tb.Helper()
	tok, _, err := c.api.ACLTokens().Create(&api.ACLToken{Name: "of a test", Type: "client", Policies: policies}, nil)
	if err != nil {
		c.tb.Fatal(err)
	}
	return tok
}

func refused(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want %q in it", what, err, want)
	}
}

func TestTheFirstTokenIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	c := start(t, orchestrator.ServerConfig{ACL: true, DataDir: dir})
	_, _, err := c.api.Jobs().List(nil)
	refused(t, "before it", err, "Permission denied")
	secret := ident.New()
	tok, _, err := c.api.ACLTokens().BootstrapOpts(secret, nil)
	if err != nil || tok.SecretID != secret || tok.Type != "management" || !tok.Global || tok.AccessorID == "" {
		t.Fatalf("%+v, %v", tok, err)
	}
	_, _, err = c.api.ACLTokens().Bootstrap(nil)
	refused(t, "again", err, "ACL bootstrap already done (reset index: ")
	if _, _, err := c.client(secret).Jobs().List(nil); err != nil {
		t.Error(err)
	}
	var index int
	_, rest, _ := strings.Cut(err.Error(), "reset index: ")
	if _, err := fmt.Sscanf(rest, "%d", &index); err != nil {
		t.Fatal(err)
	}
	reset := filepath.Join(dir, "acl-bootstrap-reset")
	for n, ok := range map[string]bool{"1": false, "x": false, fmt.Sprint(index, "\n"): true} {
		if err := os.WriteFile(reset, []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
		if ok {
			continue // last
		}
		if _, _, err := c.api.ACLTokens().Bootstrap(nil); err == nil {
			t.Errorf("a reset index of %q was taken", n)
		}
	}
	if err := os.WriteFile(reset, []byte(fmt.Sprintln(index)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.api.ACLTokens().Bootstrap(nil); err != nil {
		t.Errorf("with the reset index: %v", err)
	}
	if _, err := os.Stat(reset); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the reset file is still there")
	}
}

// On a machine with other users nobody may make a token beside the gateway's own.
func TestWithAConfiguredTokenNobodyElseBootstraps(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Token: "secret"})
	_, _, err := c.client("").ACLTokens().Bootstrap(nil)
	refused(t, "without a token", err, "Permission denied")
	if _, _, err := c.api.ACLTokens().Bootstrap(nil); err != nil {
		t.Error(err)
	}
	if self, _, err := c.api.ACLTokens().Self(nil); err != nil || self.Type != "management" {
		t.Errorf("%+v, %v", self, err)
	}
}

func TestTokensPoliciesAndRoles(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	c.policy("read", `namespace "default" { policy = "read" }`)
	c.policy("exec", `namespace "default" { capabilities = ["submit-job"] }`)
	tok := c.tokenOf("read")
	mine := c.client(tok.SecretID)
	if _, _, err := mine.Jobs().List(nil); err != nil {
		t.Error(err)
	}
	_, _, err := mine.Jobs().Register(job("10-a"), nil)
	refused(t, "a reader registers", err, "Permission denied")
	_, _, err = mine.Nodes().List(nil)
	refused(t, "a reader lists nodes", err, "Permission denied")
	_, _, err = mine.ACLTokens().List(nil)
	refused(t, "a reader lists tokens", err, "Permission denied")
	self, _, err := mine.ACLTokens().Self(nil)
	if err != nil || self.AccessorID != tok.AccessorID || self.SecretID != tok.SecretID {
		t.Errorf("self is %+v, %v", self, err)
	}
	if own, _, err := mine.ACLPolicies().Self(nil); err != nil || len(own) != 1 || own[0].Name != "read" {
		t.Errorf("own policies are %v, %v", own, err)
	}
	if p, _, err := mine.ACLPolicies().Info("read", nil); err != nil || !strings.Contains(p.Rules, "default") {
		t.Errorf("%v, %v", p, err)
	}
	_, _, err = mine.ACLPolicies().Info("exec", nil)
	refused(t, "somebody else's policy", err, "Permission denied")
	info, _, err := c.api.ACLTokens().Info(tok.AccessorID, nil)
	if err != nil || info.SecretID != "" || info.Name != "of a test" {
		t.Errorf("info is %+v, %v", info, err)
	}

	role, _, err := c.api.ACLRoles().Create(&api.ACLRole{Name: "submitter", Policies: []*api.ACLRolePolicyLink{{Name: "exec"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.api.ACLRoles().Create(&api.ACLRole{Name: "submitter", Policies: []*api.ACLRolePolicyLink{{Name: "exec"}}}, nil)
	refused(t, "a second role of the name", err, "already exists")
	tok.Roles = []*api.ACLTokenRoleLink{{Name: "submitter"}}
	if up, _, err := c.api.ACLTokens().Update(tok, nil); err != nil || len(up.Roles) != 1 || up.Roles[0].ID != role.ID || up.Roles[0].Name != "submitter" {
		t.Fatalf("%+v, %v", up, err)
	}
	if _, _, err := mine.Jobs().Register(job("10-a"), nil); err != nil {
		t.Errorf("with the role: %v", err)
	}
	if byName, _, err := mine.ACLRoles().GetByName("submitter", nil); err != nil || byName.ID != role.ID {
		t.Errorf("%v, %v", byName, err)
	}
	// The role's end is felt by the very next request, as is a policy's change and its removal.
	if _, err := c.api.ACLRoles().Delete(role.ID, nil); err != nil {
		t.Fatal(err)
	}
	_, _, err = mine.Jobs().Register(job("10-b"), nil)
	refused(t, "after the role's end", err, "Permission denied")
	c.policy("read", `namespace "other" { policy = "read" }`)
	_, _, err = mine.Jobs().List(nil)
	refused(t, "after the policy's change", err, "Permission denied")
	c.policy("read", `namespace "default" { policy = "read" }`)
	if _, _, err := mine.Jobs().List(nil); err != nil {
		t.Error(err)
	}
	c.policy("no", `namespace "default" { policy = "deny" }`)
	tok.Roles, tok.Policies = nil, []string{"read", "no"}
	if _, _, err := c.api.ACLTokens().Update(tok, nil); err != nil {
		t.Fatal(err)
	}
	_, _, err = mine.Jobs().List(nil)
	refused(t, "with a denial", err, "Permission denied")
	if _, err := c.api.ACLTokens().Delete(tok.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
	_, _, err = mine.ACLTokens().Self(nil)
	refused(t, "after its end", err, "Permission denied")

	for what, bad := range map[string]*api.ACLToken{
		"client token missing":  {Type: "client"},
		"cannot be associated":  {Type: "management", Policies: []string{"read"}},
		"must be client or":     {Type: "odd", Policies: []string{"read"}},
		`no ACL policy "nope"`:  {Type: "client", Policies: []string{"nope"}},
		"does not exist":        {Type: "client", Roles: []*api.ACLTokenRoleLink{{Name: "nope"}}},
		"expires does so after": {Type: "client", Policies: []string{"read"}, ExpirationTTL: time.Second},
	} {
		_, _, err := c.api.ACLTokens().Create(bad, nil)
		refused(t, what, err, what)
	}
	_, err = c.api.ACLPolicies().Upsert(&api.ACLPolicy{Name: "bad", Rules: `namespace "x" { policy = "all" }`}, nil)
	refused(t, "a broken policy", err, "must be one of deny, read, scale, write")
}

func TestAnonymousAndOneTimeTokens(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	nobody := c.client("")
	_, _, err := nobody.Jobs().List(nil)
	refused(t, "anonymous without a policy", err, "Permission denied")
	c.policy("anonymous", `namespace "default" { policy = "read" }`)
	if _, _, err := nobody.Jobs().List(nil); err != nil {
		t.Error(err)
	}
	_, _, err = nobody.Jobs().Register(job("10-a"), nil)
	refused(t, "anonymous registers", err, "Permission denied")
	_, _, err = c.client(ident.New()).Jobs().List(nil)
	refused(t, "a wrong token is not anonymous", err, "Permission denied")
	resp, err := c.http.Client().Get(c.http.URL + "/v1/nodes?token=" + c.token)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Errorf("a token in the query, where logs keep it, got %d", resp.StatusCode)
	}

	c.policy("nodes", `node { policy = "read" }`)
	tok := c.tokenOf("nodes")
	once, _, err := c.client(tok.SecretID).ACLTokens().UpsertOneTimeToken(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := nobody.ACLTokens().ExchangeOneTimeToken(once.OneTimeSecretID, nil)
	if err != nil || got.SecretID != tok.SecretID {
		t.Fatalf("%+v, %v", got, err)
	}
	_, _, err = nobody.ACLTokens().ExchangeOneTimeToken(once.OneTimeSecretID, nil)
	refused(t, "the second time", err, "Permission denied")
}

func TestANodeOfAControlledClusterJoinsWithItsToken(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	c.token = "join"
	c.join(newModelNode())
	if list, _, err := c.api.Nodes().List(nil); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	_, _, err := c.client("join").Nodes().List(nil)
	refused(t, "the join token reads", err, "Permission denied")
}

// The stream is refused before its first byte, shows what its reader may see, and ends with the rights.
func TestEventsAreForThoseWhoMayReadThem(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	if _, err := c.api.Namespaces().Register(&api.Namespace{Name: "b"}, nil); err != nil {
		t.Fatal(err)
	}
	c.policy("a", `namespace "default" { policy = "read" }`)
	tok := c.tokenOf("a")
	open := func(query string) *http.Response {
		t.Helper()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, c.http.URL+"/v1/event/stream?"+query, nil)
		r.Header.Set("X-Nomad-Token", tok.SecretID)
		resp, err := c.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	for query, want := range map[string]int{
		"": 403, "topic=*": 403, "topic=Node": 403, "topic=ACLToken": 403, "topic=Job&topic=Node": 403, "topic=Job&namespace=b": 403, "topic=Variable": 403,
		"topic=NodePool": 403, "topic=Job": 200, "topic=Job&topic=Allocation&namespace=*": 200, "topic=Service": 200,
	} {
		if resp := open(query); resp.StatusCode != want {
			t.Errorf("%s got %d, want %d", query, resp.StatusCode, want)
		}
	}
	resp := open("topic=Job&namespace=*")
	hidden := job("hidden")
	hidden.Namespace = new("b")
	c.register(hidden)
	c.register(job("shown"))
	dec := json.NewDecoder(resp.Body)
	for {
		var frame struct{ Events []struct{ Key string } }
		if err := dec.Decode(&frame); err != nil {
			t.Fatal(err)
		}
		if len(frame.Events) > 0 {
			if frame.Events[0].Key != "shown" {
				t.Errorf("the reader saw %+v", frame.Events)
			}
			break
		}
	}
	c.policy("a", `namespace "other" { policy = "read" }`)
	for {
		var frame any
		if err := dec.Decode(&frame); err != nil {
			break // the stream has ended
		}
	}
	// Management sees tokens, without secrets.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all, err := c.api.EventStream().Stream(ctx, map[api.Topic][]string{"ACLToken": {"*"}}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	made := c.tokenOf("a")
	for f := range all {
		if f.Err != nil {
			t.Fatal(f.Err)
		}
		if len(f.Events) == 0 {
			continue
		}
		raw, _ := json.Marshal(f.Events)
		if f.Events[0].Key != made.AccessorID || bytes.Contains(raw, []byte(made.SecretID)) {
			t.Errorf("the event is %s", raw)
		}
		break
	}
}

func TestExecNeedsItsRightInTheAllocationsNamespace(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	c.token = "join"
	c.join(newModelNode())
	c.register(job("10-a"))
	alloc := c.running("10-a", 1)[0].ID
	if _, err := c.api.Namespaces().Register(&api.Namespace{Name: "b"}, nil); err != nil {
		t.Fatal(err)
	}
	c.policy("elsewhere", `namespace "b" { policy = "write" }`)
	c.policy("reader", `namespace "default" { policy = "read" }`)
	c.policy("writer", `namespace "default" { policy = "write" }`)
	url := "ws" + strings.TrimPrefix(c.http.URL, "http") + "/v1/client/allocation/" + alloc + "/exec?task=t&command=%5B%22true%22%5D"
	denied := func(query, header, handshake string) bool {
		t.Helper()
		h := http.Header{}
		if header != "" {
			h.Set("X-Nomad-Token", header)
		}
		conn, _, err := websocket.DefaultDialer.Dial(url+query, h)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if handshake != "" {
			if err := conn.WriteJSON(map[string]any{"version": 1, "auth_token": handshake}); err != nil {
				t.Fatal(err)
			}
		}
		for {
			if _, _, err := conn.ReadMessage(); err != nil {
				return strings.Contains(err.Error(), "Permission denied")
			}
		}
	}
	elsewhere, reader, writer := c.tokenOf("elsewhere").SecretID, c.tokenOf("reader").SecretID, c.tokenOf("writer").SecretID
	for _, q := range []struct {
		query, header, handshake string
		denied                   bool
	}{
		{"", "", "", true}, {"", elsewhere, "", true}, {"&namespace=b", elsewhere, "", true}, {"", reader, "", true}, {"", writer, "", false},
		{"&ws_handshake=true", "", elsewhere, true}, {"&ws_handshake=true", "", writer, false},
		{"&ws_handshake=true", writer, elsewhere, true}, // the message counts
	} {
		if got := denied(q.query, q.header, q.handshake); got != q.denied {
			t.Errorf("%+v: denied is %v", q, got)
		}
	}
}

const shibboleth = "shibboleth-that-must-stay-secret"

func TestVariables(t *testing.T) {
	dir := t.TempDir()
	c := bootstrapped(t, orchestrator.ServerConfig{DataDir: dir})
	vars := c.api.Variables()
	v := api.NewVariable("app/db")
	v.Items["password"] = shibboleth
	made, _, err := vars.CheckedCreate(v, nil)
	if err != nil || made.Items["password"] != shibboleth || made.CreateIndex == 0 {
		t.Fatalf("%+v, %v", made, err)
	}
	var conflict api.ErrCASConflict
	if _, _, err := vars.CheckedCreate(v, nil); !errors.As(err, &conflict) || conflict.Conflict.ModifyIndex != made.ModifyIndex {
		t.Errorf("a second creation: %v", err)
	}
	if got, _, err := vars.Read("app/db", nil); err != nil || got.Items["password"] != shibboleth {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, err := vars.Read("app/none", nil); !errors.Is(err, api.ErrVariablePathNotFound) {
		t.Error(err)
	}
	if list, _, err := vars.PrefixList("app", nil); err != nil || len(list) != 1 || list[0].Path != "app/db" {
		t.Errorf("%v, %v", list, err)
	}
	// Of many who change the same one, one wins.
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			mine := made.Copy()
			mine.Items["by"] = fmt.Sprint(i)
			switch _, _, err := c.api.Variables().CheckedUpdate(mine, nil); {
			case err == nil:
				won.Add(1)
			case !errors.As(err, new(api.ErrCASConflict)):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d won", won.Load())
	}
	for path, want := range map[string]string{"nomad": "reserved", "nomad/other": "reserved", "a//b": "invalid path", "a b": "invalid path"} {
		bad := api.NewVariable(path)
		bad.Items["k"] = shibboleth
		_, _, err := vars.Create(bad, nil)
		refused(t, path, err, want)
		if strings.Contains(err.Error(), shibboleth) {
			t.Error("the error tells the value")
		}
	}
	big := api.NewVariable("big")
	big.Items["k"] = strings.Repeat("x", 64<<10)
	_, _, err = vars.Create(big, nil)
	refused(t, "a large one", err, "64KiB")
	if _, _, err := vars.Create(&api.Variable{Path: "nomad/jobs/j/g/t", Items: api.VariableItems{"k": shibboleth}}, nil); err != nil {
		t.Error(err)
	}

	// Who may list does not read, and a conflict tells a writer nothing of what it may not read.
	c.policy("writer", "namespace \"default\" {\nvariables {\npath \"app/*\" {\ncapabilities = [\"write\", \"list\"]\n}\n}\n}")
	w := c.client(c.tokenOf("writer").SecretID).Variables()
	_, _, err = w.Read("app/db", nil)
	refused(t, "a writer reads", err, "Permission denied")
	if _, _, err := w.CheckedCreate(&api.Variable{Path: "app/db", Items: api.VariableItems{"k": "v"}}, nil); !errors.As(err, &conflict) || len(conflict.Conflict.Items) != 0 {
		t.Errorf("the conflict shows %+v", conflict.Conflict)
	}
	_, err = w.Delete("app/db", nil)
	refused(t, "a writer destroys", err, "Permission denied")

	// Rotation with full seals everything anew; then the old key can go.
	before, _, err := c.api.Keyring().List(nil)
	if err != nil || len(before) != 1 || before[0].State != api.RootKeyStateActive {
		t.Fatalf("%+v, %v", before, err)
	}
	_, err = c.api.Keyring().Delete(&api.KeyringDeleteOptions{KeyID: before[0].KeyID}, nil)
	refused(t, "the active key", err, "active root key")
	if _, _, err := c.api.Keyring().Rotate(&api.KeyringRotateOptions{Full: true}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old key is free", func() bool {
		_, err := c.api.Keyring().Delete(&api.KeyringDeleteOptions{KeyID: before[0].KeyID}, nil)
		return err == nil
	})
	if got, _, err := vars.Read("app/db", nil); err != nil || got.Items["password"] != shibboleth {
		t.Errorf("after the rotation: %+v, %v", got, err)
	}
	c.stop()

	// After a restart it is there, and nothing on the disk holds it.
	found := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found++
		if bytes.Contains(data, []byte(shibboleth)) || bytes.Contains(data, []byte(c.token)) {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil || found < 2 {
		t.Fatalf("%d files, %v", found, err)
	}
	again := start(t, orchestrator.ServerConfig{DataDir: dir, ACL: true})
	if got, _, err := again.client(c.token).Variables().Read("app/db", nil); err != nil || got.Items["password"] != shibboleth {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
}

func TestLocksOfVariables(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	vars := c.api.Variables()
	take := func(id string) (*api.Variable, error) {
		v := api.NewVariable("lock")
		v.Lock = &api.VariableLock{ID: id, TTL: "30s", LockDelay: "20s"}
		got, _, err := vars.AcquireLock(v, nil)
		return got, err
	}
	held, err := take("")
	if err != nil || held.LockID() == "" {
		t.Fatalf("%+v, %v", held, err)
	}
	_, err = take("")
	refused(t, "a second holder", err, "409")
	if strings.Contains(err.Error(), held.LockID()) {
		t.Error("the conflict tells the holder's id")
	}
	if same, err := take(held.LockID()); err != nil || same.LockID() != held.LockID() {
		t.Errorf("the holder again: %+v, %v", same, err)
	}
	if meta, _, err := vars.RenewLock(held, nil); err != nil || meta.Lock == nil || meta.Lock.TTL != "30s" {
		t.Errorf("renewed: %+v, %v", meta, err)
	}
	_, _, err = vars.Update(&api.Variable{Path: "lock", Items: api.VariableItems{"k": "v"}}, nil)
	refused(t, "somebody else writes", err, "409")
	_, err = vars.Delete("lock", nil)
	refused(t, "somebody else deletes", err, "409")
	if _, _, err := vars.Update(&api.Variable{Path: "lock", Items: api.VariableItems{"k": "v"}, Lock: held.Lock}, nil); err != nil {
		t.Errorf("the holder writes: %v", err)
	}
	_, _, err = vars.RenewLock(&api.Variable{Path: "lock", Lock: &api.VariableLock{ID: ident.New()}}, nil)
	refused(t, "a stranger renews", err, "409")
	if list, _, err := vars.List(nil); err != nil || list[0].Lock == nil || list[0].Lock.ID != "" {
		t.Errorf("the list shows %+v, %v", list[0].Lock, err)
	}
	if free, _, err := vars.ReleaseLock(held, nil); err != nil || free.Lock != nil || free.Items["k"] != "v" {
		t.Errorf("released: %+v, %v", free, err)
	}
	if next, err := take(""); err != nil || next.LockID() == held.LockID() || next.Items["k"] != "v" {
		t.Errorf("after the release: %+v, %v", next, err)
	}
	bad := api.NewVariable("short")
	bad.Lock = &api.VariableLock{TTL: "1s"}
	_, _, err = vars.AcquireLock(bad, nil)
	refused(t, "a short TTL", err, "between 10s and 24h")
}

func TestNamespacesAndPools(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Namespaces: []string{"configured"}})
	c.join(newModelNode())
	ns := c.api.Namespaces()
	if list, _, err := ns.List(nil); err != nil || len(list) != 2 {
		t.Errorf("at first: %v, %v", list, err)
	}
	j := job("10-a")
	j.Namespace = new("team")
	_, _, err := c.api.Jobs().Register(j, nil)
	refused(t, "an unknown namespace", err, `job "10-a" is in nonexistent namespace "team"`)
	_, err = c.api.NodePools().Register(&api.NodePool{Name: "all"}, nil)
	refused(t, "a built-in pool", err, "not allowed")
	if _, err := c.api.NodePools().Register(&api.NodePool{Name: "gpu", Description: "x"}, nil); err != nil {
		t.Fatal(err)
	}
	team := &api.Namespace{Name: "team", Description: "d", Meta: map[string]string{"k": "v"},
		Capabilities:          &api.NamespaceCapabilities{DisabledTaskDrivers: []string{"raw_exec"}},
		NodePoolConfiguration: &api.NamespaceNodePoolConfiguration{Default: "gpu", Allowed: []string{"g*"}}}
	if _, err := ns.Register(team, nil); err != nil {
		t.Fatal(err)
	}
	got, _, err := ns.Info("team", nil)
	if err != nil || got.Meta["k"] != "v" || got.NodePoolConfiguration.Default != "gpu" || got.Capabilities.DisabledTaskDrivers[0] != "raw_exec" {
		t.Errorf("%+v, %v", got, err)
	}
	c.register(j)
	if in, _, err := c.api.Jobs().Info("10-a", &api.QueryOptions{Namespace: "team"}); err != nil || *in.NodePool != "gpu" {
		t.Errorf("the job is in pool %v, %v", in, err)
	}
	j.NodePool = new("default")
	_, _, err = c.api.Jobs().Register(j, nil)
	refused(t, "another pool", err, `node pool "default" is not allowed`)
	j.NodePool = new("nope")
	_, _, err = c.api.Jobs().Register(j, nil)
	refused(t, "an unknown pool", err, "nonexistent node pool")
	j.NodePool, j.TaskGroups[0].Tasks[0].Driver = nil, "raw_exec"
	_, _, err = c.api.Jobs().Register(j, nil)
	refused(t, "a driver that is off", err, `task driver "raw_exec" is not allowed`)
	_, err = ns.Delete("team", nil)
	refused(t, "a namespace in use", err, "non-terminal jobs")
	_, err = ns.Delete("default", nil)
	refused(t, "the default one", err, "can not be deleted")
	_, err = c.api.NodePools().Delete("gpu", nil)
	refused(t, "a pool in use", err, "non-terminal jobs")
	if _, _, err := c.api.Jobs().Deregister("10-a", true, &api.WriteOptions{Namespace: "team"}); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Delete("team", nil); err != nil {
		t.Error(err)
	}
	_, _, err = ns.Info("team", nil)
	refused(t, "a namespace that is gone", err, "Namespace not found")
	if _, err := c.api.NodePools().Delete("gpu", nil); err != nil {
		t.Error(err)
	}
	if pools, _, err := c.api.NodePools().List(nil); err != nil || len(pools) != 2 {
		t.Errorf("%v, %v", pools, err)
	}
	if nodes, _, err := c.api.NodePools().ListNodes("all", nil); err != nil || len(nodes) != 1 {
		t.Errorf("%v, %v", nodes, err)
	}
}

func TestQuotasAreHeld(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	if _, err := c.api.Quotas().Register(&api.QuotaSpec{Name: "small", Limits: []*api.QuotaLimit{{
		Region: "global", RegionLimit: &api.QuotaResources{MemoryMB: new(40)}}}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.api.Namespaces().Register(&api.Namespace{Name: "team", Quota: "small"}, nil); err != nil {
		t.Fatal(err)
	}
	_, err := c.api.Quotas().Delete("small", nil)
	refused(t, "a quota in use", err, "in use by namespace")
	one := job("10-a") // of 30 MB
	one.Namespace = new("team")
	c.register(one)
	team := &api.QueryOptions{Namespace: "team"}
	eventually(t, "the first has its room", func() bool {
		l, _, err := c.api.Jobs().Allocations("10-a", true, team)
		return err == nil && len(l) == 1
	})
	u, _, err := c.api.Quotas().Usage("small", nil)
	if err != nil || *u.Used["global"].RegionLimit.MemoryMB != 30 || *u.Used["global"].RegionLimit.MemoryMaxMB != 512 {
		t.Fatalf("%+v, %v", u, err)
	}
	two := job("10-b")
	two.Namespace = new("team")
	r := c.register(two)
	eventually(t, "the second is refused", func() bool {
		e, _, err := c.api.Evaluations().Info(r.EvalID, nil)
		return err == nil && e.Status != "pending"
	})
	if l, _, _ := c.api.Jobs().Allocations("10-b", true, team); len(l) != 0 {
		t.Error("the second was placed beyond the quota")
	}
	if _, _, err := c.api.Jobs().Deregister("10-a", true, &api.WriteOptions{Namespace: "team"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second has the room that the first left", func() bool {
		l, _, err := c.api.Jobs().Allocations("10-b", true, team)
		return err == nil && len(l) == 1
	})
	if _, _, err := c.api.Jobs().Deregister("10-b", true, &api.WriteOptions{Namespace: "team"}); err != nil {
		t.Fatal(err)
	}
	if u, _, err := c.api.Quotas().Usage("small", nil); err != nil || *u.Used["global"].RegionLimit.MemoryMB != 0 {
		t.Errorf("after the purges: %+v, %v", *u.Used["global"].RegionLimit.MemoryMB, err)
	}
}

func TestServicesComeAndGoWithTheirAllocations(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	j := job("web")
	j.TaskGroups[0].Services = []*api.Service{{Name: "web", PortLabel: "http", Provider: "consul"}}
	_, _, err := c.api.Jobs().Register(j, nil)
	refused(t, "a service of Consul", err, "provider consul is not supported by Rockpool")
	j.TaskGroups[0].Services[0].Provider = "nomad"
	c.register(j)
	a := c.running("web", 1)[0]
	put := func(list ...*model.ServiceRegistration) {
		t.Helper()
		if status, body := n.put("services", []*model.AllocServices{{AllocID: a.ID, Services: list}}); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	put(&model.ServiceRegistration{ID: "s1", ServiceName: "web", Address: "10.0.0.1", Port: 80, Tags: []string{"x"}},
		&model.ServiceRegistration{ID: "s2", ServiceName: "web", Address: "10.0.0.1", Port: 81, Tags: []string{"y", "x"}})
	if l, _, err := c.api.Services().List(nil); err != nil || len(l) != 1 || len(l[0].Services) != 1 || strings.Join(l[0].Services[0].Tags, "") != "xy" {
		t.Errorf("%+v, %v", l, err)
	}
	l, _, err := c.api.Services().Get("web", &api.QueryOptions{Filter: `"y" in Tags`})
	if err != nil || len(l) != 1 || l[0].Port != 81 || l[0].JobID != "web" || l[0].AllocID != a.ID || l[0].NodeID != n.id {
		t.Errorf("%+v, %v", l, err)
	}
	first, _, err := c.api.Services().Get("web", &api.QueryOptions{Params: map[string]string{"choose": "1|me"}})
	if err != nil || len(first) != 1 {
		t.Errorf("%+v, %v", first, err)
	}
	put(&model.ServiceRegistration{ID: "s1", ServiceName: "web", Address: "10.0.0.1", Port: 80})
	if l, _, _ := c.api.Services().Get("web", nil); len(l) != 1 || l[0].ID != "s1" {
		t.Errorf("after the second list: %+v", l)
	}
	if _, err := c.api.Services().Delete("web", "s1", nil); err != nil {
		t.Error(err)
	}
	_, err = c.api.Services().Delete("web", "s1", nil)
	refused(t, "a second removal", err, "not found")
	put(&model.ServiceRegistration{ID: "s1", ServiceName: "web", Address: "10.0.0.1", Port: 80})
	n.report(&model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientComplete})
	if l, _, err := c.api.Services().Get("web", nil); err != nil || len(l) != 0 {
		t.Errorf("after the end of the allocation: %+v, %v", l, err)
	}
}

func TestSearch(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	for i := range 25 {
		c.register(job(fmt.Sprintf("find-%02d", i)))
	}
	r, _, err := c.api.Search().PrefixSearch("find-", "jobs", nil)
	if err != nil || len(r.Matches["jobs"]) != 20 || !r.Truncations["jobs"] {
		t.Errorf("%+v, %v", r, err)
	}
	if r, _, err = c.api.Search().PrefixSearch("find-07", "all", nil); err != nil || len(r.Matches["jobs"]) != 1 || r.Truncations["jobs"] {
		t.Errorf("%+v, %v", r, err)
	}
	f, _, err := c.api.Search().FuzzySearch("D-07", "all", nil)
	if err != nil || len(f.Matches["jobs"]) != 1 || f.Matches["jobs"][0].Scope[1] != "find-07" {
		t.Errorf("%+v, %v", f, err)
	}
	_, _, err = c.api.Search().PrefixSearch("x", "odd", nil)
	refused(t, "an unknown context", err, "context must be one of")
}

// A terminal ends with the right to it, and not with a change that leaves the right.
func TestATerminalEndsWithItsRight(t *testing.T) { eachWay(t, testATerminalEndsWithItsRight) }

func testATerminalEndsWithItsRight(t *testing.T, withAgent placing) {
	c, _, alloc := withAgent(t, func(e *execution) {
		in := make([]byte, 1)
		for {
			if _, err := e.inR.Read(in); err != nil {
				return
			}
			if _, err := e.out.Write(in); err != nil {
				return
			}
		}
	})
	c.policy("writer", `namespace "default" { policy = "write" }`)
	tok := c.tokenOf("writer")
	conn := c.dial(t, alloc.ID, command("cat"), tok.SecretID)
	echo := func(text string) error {
		if err := conn.WriteJSON(map[string]any{"stdin": map[string]any{"data": []byte(text)}}); err != nil {
			return err
		}
		for {
			var frame struct{ Stdout *struct{ Data []byte } }
			if err := conn.ReadJSON(&frame); err != nil {
				return err
			}
			if frame.Stdout != nil && string(frame.Stdout.Data) == text {
				return nil
			}
		}
	}
	if err := echo("a"); err != nil {
		t.Fatal(err)
	}
	c.policy("writer", `namespace "de*" { policy = "write" }`)
	if err := echo("b"); err != nil {
		t.Fatalf("after a change that leaves the right: %v", err)
	}
	if _, err := c.api.ACLTokens().Delete(tok.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			if strings.Contains(err.Error(), "timeout") {
				t.Error("the terminal is open after the token's end")
			}
			break
		}
	}
}

func TestTheAuditLogSaysWhoAskedAndNothingSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	c := bootstrapped(t, orchestrator.ServerConfig{AuditFile: path})
	c.policy("none", `node { policy = "read" }`)
	tok := c.tokenOf("none")
	_, _, err := c.client(tok.SecretID).Jobs().List(nil)
	refused(t, "a list", err, "Permission denied")
	v := api.NewVariable("app/db")
	v.Items["password"] = shibboleth
	if _, _, err := c.api.Variables().Create(v, nil); err != nil {
		t.Fatal(err)
	}
	c.stop()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"route":"variable.put.put"`, `"path":"/v1/var/app/db"`, `"route":"job.list"`, `"status":403`, `"accessor":"` + tok.AccessorID + `"`} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("%s is not in it", want)
		}
	}
	for _, secret := range []string{shibboleth, tok.SecretID, c.token} {
		if bytes.Contains(data, []byte(secret)) {
			t.Error("it holds a secret")
		}
	}
}

func TestAKeyFileMustBeThereAndLongEnough(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kek")
	if _, err := orchestrator.NewServer(orchestrator.ServerConfig{Name: "one", KeyFile: file}); err == nil {
		t.Error("a key file that is missing was taken")
	}
	if err := os.WriteFile(file, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := orchestrator.NewServer(orchestrator.ServerConfig{Name: "one", KeyFile: file}); err == nil || !strings.Contains(err.Error(), "at least 16") {
		t.Errorf("a short key gave %v", err)
	}
	if err := os.WriteFile(file, bytes.Repeat([]byte("k3"), 32), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, orchestrator.ServerConfig{KeyFile: file})
	v := api.NewVariable("a")
	v.Items["k"] = "v"
	if _, _, err := c.api.Variables().Create(v, nil); err != nil {
		t.Error(err)
	}
}
