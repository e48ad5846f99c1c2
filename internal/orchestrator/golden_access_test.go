package orchestrator_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/api/contexts"

	"rockpool/internal/ident"
)

// queryCommands are the options that lists understand.
var queryCommands = []goldenCommand{
	{"prefix", in("list-jobs", "read-job") + readsNodes, func(g *golden) {
		id := g.alloc("tiny").ID
		for _, path := range []string{"allocations?prefix=" + id[:7], "allocations?prefix=" + id, "allocations?prefix=xyz", "evaluations?prefix=xyz", "nodes?prefix=xyz", "deployments?prefix=xyz",
			"allocations?prefix=" + id + "0", "jobs?prefix=ti", "jobs?prefix=zz", "nodes?prefix=" + g.node.ID()[:5]} {
			g.raw("GET", "/v1/"+path, "")
		}
	}},
	{"filter", in("list-jobs", "read-job") + readsNodes, func(g *golden) {
		for _, path := range []string{`jobs?filter=ID+==+"tiny"`, `jobs?filter=ID+==`, `jobs?filter=Nothing+==+"x"`, `allocations?filter=%21`, `nodes?filter=Name+==+"node-1"`, `nodes?filter=%28`,
			`evaluations?filter=%28`, `deployments?filter=%28`, `evaluations/count?filter=%28`} {
			g.raw("GET", "/v1/"+path, "")
		}
	}},
	{"per_page, next_token, reverse", in("list-jobs"), func(g *golden) {
		const some = `ID == "grade" or ID == "nightly" or ID == "tiny"`
		list, meta, err := g.api.Jobs().List(&api.QueryOptions{PerPage: 1, Filter: some})
		g.ok(err)
		if len(list) != 1 || meta.NextToken == "" {
			g.t.Errorf("the page holds %d, and the next is %q", len(list), meta.NextToken)
		}
		g.ok(ended(g.api.Jobs().List(&api.QueryOptions{PerPage: 1, NextToken: meta.NextToken, Filter: some})))
		g.ok(ended(g.api.Jobs().List(&api.QueryOptions{PerPage: 1, Reverse: true, Filter: some})))
		g.raw("GET", "/v1/jobs?per_page=x", "")
		g.raw("GET", "/v1/jobs?reverse=x", "")
	}},
	{"pretty, stale, meta", in("list-jobs"), func(g *golden) {
		g.raw("GET", "/v1/jobs?pretty&stale&meta=true&prefix=tiny", "")
		g.raw("GET", "/v1/jobs?stale=false&meta=false&prefix=tiny", "")
		r, err := http.NewRequestWithContext(g.t.Context(), "GET", g.c.http.URL+"/v1/jobs?pretty&prefix=zz", nil)
		g.ok(err)
		r.Header.Set("Authorization", "Bearer "+g.token)
		resp, err := g.c.http.Client().Do(r)
		g.ok(err)
		text, err := io.ReadAll(resp.Body)
		g.ok(err)
		resp.Body.Close()
		g.note("pretty, with Authorization: %d %q\n\n", resp.StatusCode, text)
	}},
	{"index, wait", in("list-jobs", "read-job"), func(g *golden) {
		g.ok(ended(g.api.Jobs().Info("tiny", &api.QueryOptions{WaitIndex: 1, WaitTime: time.Minute})))
		g.raw("GET", "/v1/jobs?prefix=zz&index=100000&wait=1ms", "")
		g.raw("GET", "/v1/jobs?index=x", "")
		g.raw("GET", "/v1/jobs?index=-1", "")
		g.raw("GET", "/v1/jobs?index=1&wait=x", "")
		g.raw("GET", "/v1/jobs?index=1&wait=5", "")
	}},
	{"namespace", in("list-jobs", "read-job"), func(g *golden) {
		g.raw("GET", "/v1/jobs?namespace=*&prefix=tiny", "")
		g.raw("GET", "/v1/allocations?namespace=*&filter=JobID+==+\"tiny\"", "")
		g.raw("GET", "/v1/evaluations?namespace=*&job=none", "")
		g.raw("GET", "/v1/deployments?namespace=*&prefix=00", "")
	}},
	{"namespace that is not there", "", func(g *golden) {
		g.raw("GET", "/v1/jobs?namespace=none", "")
		g.raw("GET", "/v1/job/tiny?namespace=none", "")
		g.raw("PUT", "/v1/jobs?namespace=none", `{"Job":{"ID":"x","Type":"batch","Datacenters":["dc1"],"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Driver":"mock"}]}]}}`)
	}},
	{"resources, task_states, os", in("list-jobs", "read-job") + readsNodes, func(g *golden) {
		g.raw("GET", "/v1/allocations?resources=true&filter=JobID+==+\"tiny\"", "")
		g.raw("GET", "/v1/allocations?task_states=false&filter=JobID+==+\"tiny\"", "")
		g.raw("GET", "/v1/nodes?os=true&resources=false", "")
	}},
}

// refusalCommands are the errors of the contract, codes and texts.
var refusalCommands = []goldenCommand{
	{"objects that are not there", in("read-job", "list-jobs", "submit-job") + readsNodes, func(g *golden) {
		for _, path := range []string{"job/none", "job/none/allocations", "job/none/evaluations", "job/none/summary", "job/none/deployment", "job/none/deployments", "job/none/versions",
			"job/none/services", "job/none/submission?version=0", "allocation/" + unknownID, "evaluation/" + unknownID, "evaluation/" + unknownID + "/allocations", "node/" + unknownID,
			"node/" + unknownID + "/allocations", "deployment/" + unknownID, "allocation/" + unknownID + "/services", "deployment/allocations/" + unknownID} {
			g.raw("GET", "/v1/"+path, "")
		}
		g.raw("DELETE", "/v1/job/none", "")
		g.raw("DELETE", "/v1/job/none?purge=true", "")
	}},
	{"more of them", "", func(g *golden) {
		for _, path := range []string{"job/none/scale", "scaling/policy/" + unknownID, "namespace/none", "quota/none", "quota/usage/none", "node/pool/none", "var/none",
			"client/allocation/" + unknownID + "/stats", "client/fs/ls/" + unknownID, "client/stats?node_id=" + unknownID, "client/stats", "client/metadata?node_id=" + unknownID} {
			g.raw("GET", "/v1/"+path, "")
		}
		for _, path := range []string{"job/none/evaluate", "job/none/periodic/force", "job/none/revert", "job/none/stable", "job/none/scale", "job/none/dispatch", "allocation/" + unknownID + "/stop"} {
			g.raw("PUT", "/v1/"+path, `{"JobID":"none"}`)
		}
		g.raw("DELETE", "/v1/namespace/none", "")
		g.raw("DELETE", "/v1/quota/none", "")
	}},
	{"malformed ids", in("read-job") + readsNodes, func(g *golden) {
		for _, path := range []string{"allocation/x", "evaluation/x", "node/x", "deployment/x", "evaluation/x/allocations", "client/allocation/x/stats"} {
			g.raw("GET", "/v1/"+path, "")
		}
	}},
	{"jobs that are wrong", in("submit-job", "read-job"), func(g *golden) {
		for _, body := range []string{``, `{}`, `{`, `[]`, `{"Job":null}`, `{"Job":{"ID":""}}`, `{"Job":{"ID":"a b","Type":"odd","Datacenters":["dc1"],"TaskGroups":[]}}`,
			`{"Job":{"ID":"x","Type":"batch","Datacenters":["dc1"],"Priority":101,"TaskGroups":[{"Name":"g","Count":-1,"Tasks":[{"Name":"","Driver":""}]}]}}`} {
			g.raw("PUT", "/v1/jobs", body)
		}
		g.raw("PUT", "/v1/job/other", `{"Job":{"ID":"x"}}`)
		g.raw("PUT", "/v1/job/x/plan", `{}`)
		g.raw("PUT", "/v1/job/x/plan", `{"Job":{"ID":"y"}}`)
		g.raw("PUT", "/v1/validate/job", `{}`)
	}},
	{"wrong methods, unknown paths", "", func(g *golden) {
		g.raw("DELETE", "/v1/jobs", "")
		g.raw("PATCH", "/v1/job/tiny", "")
		g.raw("GET", "/v1/system/gc", "")
		g.raw("GET", "/", "")
		g.raw("GET", "/v1/nothing", "")
		g.raw("GET", "/v2/jobs", "")
		g.raw("GET", "/v1/internal/nothing", "")
	}},
	{"what is not offered", "", func(g *golden) {
		for _, path := range []string{"acl/auth-methods", "acl/binding-rules", "acl/oidc/auth-url", "volumes?type=host", "volume/csi/x", "volumes/snapshot", "sentinel/policies", "recommendations",
			"agent/keyring/list", "operator/utilization", "jobs/statuses", "job/tiny/actions", "job/tiny/action?action=x", "client/identity", "allocation/" + unknownID + "/checks"} {
			g.raw("GET", "/v1/"+path, "")
		}
		g.raw("PUT", "/v1/acl/login", "{}")
		g.ok(ended(g.api.CSIVolumes().List(nil)))
		g.ok(ended(g.api.CSIPlugins().List(nil)))
		g.ok(done(g.api.Nodes().CSIVolumes(g.node.ID(), nil)))
	}},
}

// policyCommands are those of namespaces, quotas, variables and keys.
var policyCommands = []goldenCommand{
	{"namespace apply, list, status, delete", "", func(g *golden) {
		n := &api.Namespace{Name: "a", Description: "d", Meta: map[string]string{"k": "v"}, Capabilities: &api.NamespaceCapabilities{DisabledTaskDrivers: []string{"raw_exec"}},
			NodePoolConfiguration: &api.NamespaceNodePoolConfiguration{Default: "default"}}
		g.ok(done(g.api.Namespaces().Register(n, nil)))
		g.raw("PUT", "/v1/namespace", `{"Name":"b"}`)
		g.ok(ended(g.api.Namespaces().List(nil)))
		g.ok(ended(g.api.Namespaces().PrefixList("a", nil)))
		g.ok(ended(g.api.Namespaces().Info("a", nil)))
		g.ok(done(g.api.Namespaces().Delete("b", nil)))
		g.raw("DELETE", "/v1/namespace/default", "")
		g.raw("PUT", "/v1/namespace", `{"Name":"not a name!"}`)
		g.raw("PUT", "/v1/namespace/c", `{"Name":"d"}`)
		g.quietly(func() {
			_, _, err := g.c.api.Jobs().Register(one("inside"), &api.WriteOptions{Namespace: "a"})
			g.ok(err)
		})
		g.ok2(nil, nil, done(g.api.Namespaces().Delete("a", nil)))
		g.quietly(func() {
			_, _, err := g.c.api.Jobs().Deregister("inside", true, &api.WriteOptions{Namespace: "a"})
			g.ok(err)
		})
	}},
	{"quota apply, list, status, inspect, delete", writeQuota, func(g *golden) {
		q := &api.QuotaSpec{Name: "q", Description: "d", Limits: []*api.QuotaLimit{{Region: "global", RegionLimit: &api.QuotaResources{CPU: new(1000), MemoryMB: new(2000)}}}}
		g.ok(done(g.api.Quotas().Register(q, nil)))
		g.raw("PUT", "/v1/quota/q", `{"Name":"q","Limits":[{"Region":"global","RegionLimit":{"CPU":500}}]}`)
		g.ok(ended(g.api.Quotas().List(nil)))
		g.ok(ended(g.api.Quotas().PrefixList("q", nil)))
		g.ok(ended(g.api.Quotas().Info("q", nil)))
		g.ok(ended(g.api.Quotas().Usage("q", nil)))
		g.ok(ended(g.api.Quotas().ListUsage(nil)))
		g.ok(done(g.api.Quotas().Delete("q", nil)))
	}},
	{"var put, get, list, purge", "namespace \"default\" {\n  variables {\n    path \"*\" {\n      capabilities = [\"write\", \"read\", \"list\", \"destroy\"]\n    }\n  }\n}\n", func(g *golden) {
		v := &api.Variable{Namespace: "default", Path: "app/db", Items: api.VariableItems{"user": "u", "password": "p"}}
		made, _, err := g.api.Variables().Create(v, nil)
		g.ok(err)
		g.ok2(g.api.Variables().CheckedUpdate(&api.Variable{Namespace: "default", Path: "app/db", Items: v.Items, ModifyIndex: 1}, nil))
		made.Items = api.VariableItems{"user": "w"}
		g.ok(ended(g.api.Variables().CheckedUpdate(made, nil)))
		g.ok(ended(g.api.Variables().Read("app/db", nil)))
		g.ok(ended(g.api.Variables().Peek("app/none", nil)))
		g.ok(ended(g.api.Variables().PrefixList("app", nil)))
		g.raw("PUT", "/v1/var/app/db?cas=x", `{"Items":{"a":"b"}}`)
		g.raw("PUT", "/v1/var/app/db", `{"Items":{}}`)
		g.raw("PUT", "/v1/var/app/db", `{"Path":"other","Items":{"a":"b"}}`)
		g.ok2(nil, nil, done(g.api.Variables().CheckedDelete("app/db", 1, nil)))
		g.ok(done(g.api.Variables().Delete("app/db", nil)))
	}},
	{"var lock", "namespace \"default\" {\n  variables {\n    path \"*\" {\n      capabilities = [\"write\", \"read\", \"list\", \"destroy\"]\n    }\n  }\n}\n", func(g *golden) {
		v := &api.Variable{Namespace: "default", Path: "lock", Items: api.VariableItems{"a": "b"}, Lock: &api.VariableLock{TTL: "30s", LockDelay: "15s"}}
		held, _, err := g.api.Variables().AcquireLock(v, nil)
		g.ok(err)
		g.ok2(g.api.Variables().AcquireLock(v, nil))
		g.ok(ended(g.api.Variables().RenewLock(held, nil)))
		g.raw("PUT", "/v1/var/lock", `{"Items":{"a":"c"}}`)
		g.ok(ended(g.api.Variables().ReleaseLock(held, nil)))
	}},
	{"operator root keyring list, rotate, remove", "", func(g *golden) {
		g.ok(ended(g.api.Keyring().Rotate(nil, nil)))
		keys, _, err := g.api.Keyring().List(nil)
		g.ok(err)
		slices.SortFunc(keys, func(x, y *api.RootKeyMeta) int { return strings.Compare(string(x.State), string(y.State)) })
		for _, k := range keys {
			_, err := g.api.Keyring().Delete(&api.KeyringDeleteOptions{KeyID: k.KeyID}, nil)
			refused(g.t, "the removal of a key in use", err, "400")
			if k.State != api.RootKeyStateActive {
				g.ok(done(g.api.Keyring().Delete(&api.KeyringDeleteOptions{KeyID: k.KeyID, Force: true}, nil)))
			}
		}
		g.raw("DELETE", "/v1/operator/keyring/key/"+unknownID, "")
	}},
	{"search by kind", in("list-jobs", "read-job") + readsNodes + readsPools, func(g *golden) {
		g.ok(ended(g.api.Search().PrefixSearch("ti", contexts.Jobs, nil)))
		g.ok(ended(g.api.Search().PrefixSearch(g.node.ID()[:6], contexts.Nodes, nil)))
		g.raw("PUT", "/v1/search", `{"Prefix":"x","Context":"odd"}`)
		g.raw("PUT", "/v1/search/fuzzy", `{"Text":"t","Context":"jobs"}`)
		g.raw("PUT", "/v1/search/fuzzy", `{"Text":"iny","Context":"jobs"}`)
	}},
}

// accessCommands are those of access control, with it switched on.
var accessCommands = []goldenCommand{
	{"acl bootstrap, again", "", func(g *golden) {
		_, _, err := g.api.ACLTokens().Bootstrap(nil)
		refused(g.t, "a second time", err, "400 (ACL bootstrap already done (reset index: ")
	}},
	{"acl policy apply, list, info, delete", "", func(g *golden) {
		p := &api.ACLPolicy{Name: "readers", Description: "d", Rules: `namespace "default" { policy = "read" }`}
		bound := &api.ACLPolicy{Name: "bound", Rules: p.Rules, JobACL: &api.JobACL{Namespace: "default", JobID: "tiny"}}
		g.ok2(nil, nil, done(g.api.ACLPolicies().Upsert(bound, nil)))
		g.ok(done(g.api.ACLPolicies().Upsert(p, nil)))
		g.ok(ended(g.api.ACLPolicies().Info("readers", nil)))
		g.raw("GET", "/v1/acl/policies?prefix=readers", "")
		g.raw("GET", "/v1/acl/policy/none", "")
		g.raw("PUT", "/v1/acl/policy/bad", `{"Name":"bad","Rules":"namespace \"x\" { policy = \"odd\" }"}`)
		g.raw("PUT", "/v1/acl/policy/one", `{"Name":"other","Rules":"agent { policy = \"read\" }"}`)
		g.ok(done(g.api.ACLPolicies().Delete("readers", nil)))
		g.raw("DELETE", "/v1/acl/policy/none", "")
	}},
	{"acl token create, update, info, list, delete", "", func(g *golden) {
		g.quietly(func() { g.c.policy("p", in("read-job")) })
		tok, _, err := g.api.ACLTokens().Create(&api.ACLToken{Name: "mine", Type: "client", Policies: []string{"p"}, ExpirationTTL: time.Hour}, nil)
		g.ok(err)
		g.ok(ended(g.api.ACLTokens().Info(tok.AccessorID, nil)))
		tok.Name = "yours"
		g.ok(ended(g.api.ACLTokens().Update(&api.ACLToken{AccessorID: tok.AccessorID, Name: "yours", Type: "client", Policies: []string{"p"}}, nil)))
		g.raw("GET", "/v1/acl/tokens?prefix="+tok.AccessorID[:8], "")
		g.raw("GET", "/v1/acl/token/"+unknownID, "")
		g.raw("PUT", "/v1/acl/token", `{"Name":"x","Type":"odd"}`)
		g.raw("PUT", "/v1/acl/token", `{"Name":"x","Type":"client"}`)
		g.ok(done(g.api.ACLTokens().Delete(tok.AccessorID, nil)))
		g.raw("DELETE", "/v1/acl/token/"+unknownID, "")
	}},
	{"acl token self, policy self", "", func(g *golden) {
		g.quietly(func() { g.c.policy("own", in("read-job")) })
		g.as(g.c.tokenOf("own").SecretID)
		g.ok(ended(g.api.ACLTokens().Self(nil)))
		g.ok(ended(g.api.ACLPolicies().Self(nil)))
		g.ok(ended(g.api.ACLPolicies().List(nil)))
		g.ok(ended(g.api.ACLPolicies().Info("own", nil)))
	}},
	{"acl role create, update, list, info, delete", "", func(g *golden) {
		r, _, err := g.api.ACLRoles().Create(&api.ACLRole{Name: "teacher", Description: "d", Policies: []*api.ACLRolePolicyLink{{Name: "p"}}}, nil)
		g.ok(err)
		g.ok(ended(g.api.ACLRoles().Get(r.ID, nil)))
		g.ok(ended(g.api.ACLRoles().GetByName("teacher", nil)))
		r.Description = "e"
		g.ok(ended(g.api.ACLRoles().Update(r, nil)))
		g.ok(ended(g.api.ACLRoles().List(nil)))
		g.raw("GET", "/v1/acl/role/"+unknownID, "")
		g.raw("GET", "/v1/acl/role/name/none", "")
		g.ok(done(g.api.ACLRoles().Delete(r.ID, nil)))
	}},
	{"ui -authenticate, login with a one-time token", "", func(g *golden) {
		one, _, err := g.api.ACLTokens().UpsertOneTimeToken(nil)
		g.ok(err)
		g.as("")
		g.ok(ended(g.api.ACLTokens().ExchangeOneTimeToken(one.OneTimeSecretID, nil)))
		g.ok2(g.api.ACLTokens().ExchangeOneTimeToken(one.OneTimeSecretID, nil))
	}},
	{"without a right", "", func(g *golden) {
		for _, token := range []string{"", ident.New(), "x"} {
			g.as(token)
			for _, path := range []string{"jobs", "job/tiny", "nodes", "agent/self", "acl/tokens", "acl/token/self", "operator/raft/configuration", "event/stream?topic=Job", "client/fs/ls/" + g.c.running("tiny", 1)[0].ID} {
				g.raw("GET", "/v1/"+path, "")
			}
		}
		for _, path := range []string{"status/leader", "status/peers", "regions", "agent/health"} {
			g.raw("GET", "/v1/"+path, "")
		}
	}},
	{"in another namespace", "", func(g *golden) {
		g.quietly(func() { g.c.policy("elsewhere", strings.Replace(in("read-job", "list-jobs"), "default", "a", 1)) })
		g.as(g.c.tokenOf("elsewhere").SecretID)
		g.raw("GET", "/v1/jobs", "")
		g.raw("GET", "/v1/jobs?namespace=*", "")
		g.raw("GET", "/v1/job/tiny", "")
		g.raw("GET", "/v1/allocation/"+g.c.running("tiny", 1)[0].ID, "")
		g.raw("GET", "/v1/namespaces", "")
	}},
	{"operator introduction token", writeNodes, func(g *golden) {
		g.ok(ended(g.api.ACLIdentity().CreateClientIntroductionToken(&api.ACLIdentityClientIntroductionTokenRequest{TTL: time.Minute, NodeName: "node-9", NodePool: "default"}, nil)))
	}},
}

// accessOffCommands are the same with it switched off.
var accessOffCommands = []goldenCommand{
	{"acl", "", func(g *golden) {
		for _, path := range []string{"acl/policies", "acl/policy/p", "acl/policy/self", "acl/tokens", "acl/token/self", "acl/token/" + unknownID, "acl/roles", "acl/role/" + unknownID} {
			g.raw("GET", "/v1/"+path, "")
		}
	}},
}

// serverCommands are those of operators.
var serverCommands = []goldenCommand{
	{"server members", readsAgent, func(g *golden) {
		g.ok(done(g.api.Agent().Members()))
		g.ok(done(g.api.Status().RegionLeader("global")))
		g.ok(done(g.api.Status().Leader()))
		g.ok(done(g.api.Status().Peers()))
		g.ok(done(g.api.Regions().List()))
		g.ok(done(g.api.Agent().Servers()))
		g.ok(done(g.api.Agent().Health()))
	}},
	{"server join, force-leave", writeAgent, func(g *golden) {
		_, err := g.api.Agent().Join("127.0.0.1:1")
		refused(g.t, "join", err, "alone")
		g.ok2(nil, nil, g.api.Agent().ForceLeave("x"))
		g.raw("PUT", "/v1/agent/join", "")
	}},
	{"agent-info", readsAgent, func(g *golden) {
		self, err := g.api.Agent().Self()
		g.ok(err)
		if got := self.Config["ACL"].(map[string]any)["Enabled"]; got != g.acl {
			g.t.Errorf("access control is %v, and the answer says %v", g.acl, got)
		}
	}},
	{"operator raft list-peers, remove-peer, transfer-leadership", operates, func(g *golden) {
		g.ok(done(g.api.Operator().RaftGetConfiguration(nil)))
		g.ok2(nil, nil, g.api.Operator().RaftRemovePeerByID("nobody", nil))
		g.ok2(nil, nil, g.api.Operator().RaftRemovePeerByAddress("127.0.0.1:1", nil))
		g.raw("DELETE", "/v1/operator/raft/peer", "")
		g.ok2(nil, nil, g.api.Operator().RaftTransferLeadershipByID("nobody", nil))
		g.raw("PUT", "/v1/operator/raft/transfer-leadership", "")
	}},
	{"operator autopilot get-config, set-config, health", operates, func(g *golden) {
		conf, _, err := g.api.Operator().AutopilotGetConfiguration(nil)
		g.ok(err)
		conf.MinQuorum = 3
		g.ok(done(g.api.Operator().AutopilotSetConfiguration(conf, nil)))
		g.ok(ended(g.api.Operator().AutopilotCASConfiguration(conf, nil)))
		g.ok(ended(g.api.Operator().AutopilotGetConfiguration(nil)))
		g.quietly(func() {
			eventually(g.t, "it is healthy", func() bool {
				h, _, err := g.c.api.Operator().AutopilotServerHealth(nil)
				return err == nil && h.Healthy
			})
		})
		g.ok(ended(g.api.Operator().AutopilotServerHealth(nil)))
	}},
	{"operator scheduler get-config, set-config", operates, func(g *golden) {
		g.ok(ended(g.api.Operator().SchedulerGetConfiguration(nil)))
		conf := &api.SchedulerConfiguration{SchedulerAlgorithm: "spread", PreemptionConfig: api.PreemptionConfig{BatchSchedulerEnabled: true}, MemoryOversubscriptionEnabled: true}
		g.ok(ended(g.api.Operator().SchedulerSetConfiguration(conf, nil)))
		conf.ModifyIndex = 1
		g.ok(ended(g.api.Operator().SchedulerCASConfiguration(conf, nil)))
		g.ok(ended(g.api.Operator().SchedulerGetConfiguration(nil)))
		g.raw("PUT", "/v1/operator/scheduler/configuration", `{"SchedulerAlgorithm":"odd"}`)
		g.raw("PUT", "/v1/operator/scheduler/configuration?cas=x", `{"SchedulerAlgorithm":"binpack"}`)
	}},
	{"operator snapshot save", "", func(g *golden) {
		in, err := g.api.Operator().Snapshot(nil)
		g.ok(err)
		_, err = io.Copy(io.Discard, in) // the client holds it to its digest
		g.ok(err)
		g.ok(in.Close())
	}},
	{"operator metrics", readsAgent, func(g *golden) {
		g.quietly(func() { g.raw("GET", "/v1/metrics", "") }) // its names are the business of package metrics
		g.raw("GET", "/v1/metrics?format=odd", "")
	}},
	{"operator debug", readsAgent + operates, func(g *golden) {
		g.ok(done(g.api.Agent().GetSchedulerWorkerConfig(nil)))
		g.shape = true
		g.ok(done(g.api.Agent().GetSchedulerWorkersInfo(nil)))
		g.ok(done(g.api.Agent().Host("", "", nil)))
		g.quietly(func() {
			for _, p := range []string{"goroutine", "heap", "threadcreate"} {
				g.ok(done(g.api.Agent().Lookup(p, api.PprofOptions{}, nil)))
			}
		})
		g.raw("GET", "/v1/agent/pprof/odd", "")
	}},
	{"monitor of nothing", readsAgent, func(g *golden) {
		g.raw("GET", "/v1/agent/monitor?log_level=odd", "")
		g.raw("GET", "/v1/agent/monitor?server_id=none", "")
		g.raw("GET", "/v1/agent/monitor?server_id=one&node_id="+unknownID, "")
		g.raw("GET", "/v1/agent/monitor?node_id="+unknownID, "")
	}},
	{"license get", inspects, func(g *golden) { g.raw("GET", "/v1/operator/license", "") }},
	{"agent reload", operates, func(g *golden) { g.ok(g.api.Agent().Reload(nil, nil)) }},
}
