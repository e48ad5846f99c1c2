package httpapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

// odd are values that stand for any other.
var odd = []any{nil, -1, 1 << 62, 2.5, "", "\x00", "${", "*", []any{}, []any{nil}, map[string]any{}, map[string]any{"k": nil}, true}

// variants yields v with each part of it replaced by each odd value, and the path of the part.
func variants(v any, path string, yield func(path string, v any) bool) bool {
	for _, o := range odd {
		if !yield(fmt.Sprintf("%s=%#v", path, o), o) {
			return false
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			ok := variants(v[k], path+"."+k, func(p string, changed any) bool {
				c := maps.Clone(v)
				c[k] = changed
				return yield(p, c)
			})
			if !ok {
				return false
			}
		}
	case []any:
		for i := range v {
			ok := variants(v[i], fmt.Sprintf("%s[%d]", path, i), func(p string, changed any) bool {
				c := slices.Clone(v)
				c[i] = changed
				return yield(p, c)
			})
			if !ok {
				return false
			}
		}
		return yield(path+"+null", append(slices.Clone(v), nil))
	}
	return true
}

const fullJob = `{"Job":{"ID":"x","Name":"x","Namespace":"a","Type":"service","Priority":50,"Datacenters":["*"],"NodePool":"p","AllAtOnce":false,"Meta":{"k":"v"},
"Constraints":[{"LTarget":"${attr.x}","RTarget":"1","Operand":"="}],"Affinities":[{"LTarget":"${attr.x}","RTarget":"1","Operand":"version","Weight":50}],
"Spreads":[{"Attribute":"${node.datacenter}","Weight":50,"SpreadTarget":[{"Value":"a","Percent":50}]}],"Update":{"MaxParallel":1},
"TaskGroups":[{"Name":"g","Count":1,"Meta":{"k":"v"},"Constraints":[{"LTarget":"${attr.x}","RTarget":">0.1","Operand":"version"}],
"RestartPolicy":{"Attempts":1,"Interval":1000000000,"Delay":1000,"Mode":"fail"},
"ReschedulePolicy":{"Attempts":0,"Delay":30000000000,"DelayFunction":"exponential","MaxDelay":60000000000,"Unlimited":true},
"EphemeralDisk":{"SizeMB":10},"Update":{"MaxParallel":1,"HealthCheck":"checks","MinHealthyTime":1000000000,"HealthyDeadline":5000000000,"ProgressDeadline":10000000000,"Canary":1},
"Migrate":{"MaxParallel":1,"HealthCheck":"checks","MinHealthyTime":1000000000,"HealthyDeadline":5000000000},"Disconnect":{"LostAfter":1000000000,"Replace":true,"Reconcile":"best_score"},
"Networks":[{"Mode":"bridge","Hostname":"h","DNS":{"Servers":["8.8.8.8"]},"DynamicPorts":[{"Label":"p","To":80}],"ReservedPorts":[{"Label":"q","Value":80}]}],
"Volumes":{"v":{"Name":"v","Type":"host","Source":"s","ReadOnly":true}},"Scaling":{"Min":0,"Max":5,"Enabled":true,"Policy":{"a":1}},"ShutdownDelay":1000,
"Services":[{"Name":"svc","PortLabel":"p","Provider":"nomad","Tags":["t"],"Checks":[{"Name":"c","Type":"http","Path":"/","Interval":10000000000,"Timeout":2000000000,"Header":{"A":["b"]}}]}],
"Tasks":[{"Name":"t","Driver":"mock","User":"u","Config":{"a":{"b":[1]}},"Env":{"A":"b"},"Meta":{"k":"v"},"KillTimeout":1000,"KillSignal":"SIGINT","Leader":true,
"Resources":{"CPU":10,"MemoryMB":10,"MemoryMaxMB":20,"DiskMB":1,"Devices":[{"Name":"nvidia/gpu","Count":1,"Constraints":[{"LTarget":"${device.attr.x}","RTarget":"0","Operand":">"}],"Affinities":[{"LTarget":"a","RTarget":"b","Operand":"=","Weight":1}]}],"Networks":[{"Mode":"host"}]},
"Templates":[{"DestPath":"local/x","EmbeddedTmpl":"x","Perms":"0644"}],"DispatchPayload":{"File":"f"},"LogConfig":{"MaxFiles":1,"MaxFileSizeMB":1},
"VolumeMounts":[{"Volume":"v","Destination":"/v"}],"RestartPolicy":{"Attempts":1,"Interval":1000000000,"Delay":1000,"Mode":"fail"},"ShutdownDelay":1000,
"Services":[{"Name":"tsvc","PortLabel":"p","Provider":"nomad"}],"Constraints":[],"Affinities":[]},
{"Name":"s","Driver":"mock","Lifecycle":{"Hook":"prestart","Sidecar":true},"Resources":{"CPU":10,"MemoryMB":10}}]}]},
"EnforceIndex":false,"JobModifyIndex":0,"PreserveCounts":true,"EvalPriority":5,"Submission":{"Source":"x","Format":"hcl2","VariableFlags":{"a":"b"},"Variables":"v"}}`

const fullTemplate = `{"Job":{"ID":"y","Name":"y","Namespace":"a","Type":"batch","Periodic":{"Enabled":true,"Spec":"0 0 1 1 *","SpecType":"cron","TimeZone":"UTC","ProhibitOverlap":true},
"ParameterizedJob":{"Payload":"optional","MetaRequired":["a"],"MetaOptional":["b"]},"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Driver":"mock"}]}]}}`

// Every part of every body that writes something is replaced by null and by other values that do not belong there. What is refused is refused with a word, and
// what is taken can be applied, placed, shown and replaced: an entry on the log that cannot be applied ends every server at every start.
func TestNoPartOfABodyBreaksAServer(t *testing.T) {
	w := newWorld(t)
	token := w.management(t)
	node := fmt.Sprintf(`{"ID":%q,"SecretID":%q,"Name":"n","Datacenter":"dc1","NodePool":"p","NodeClass":"c","Attributes":{"x":"1","network.bridge":"1","kernel.name":"linux"},"Meta":{"a":"b"},
		"Resources":{"CPU":1000,"Cores":2,"MemoryMB":1000,"DiskMB":1000,"Devices":[{"Vendor":"nvidia","Type":"gpu","Name":"n","Attributes":{"x":{"Kind":1,"Int":1,"Unit":""}},"Instances":[{"ID":"i","Healthy":true}]}]},
		"Drivers":{"mock":{"Detected":true,"Healthy":true,"Attributes":{"a":"b"}}},"HostVolumes":{"s":{"Path":"/x","ReadOnly":true}},"Status":"ready"}`, w.node, nodeSecret)
	report := fmt.Sprintf(`[{"ID":%q,"ClientStatus":"running","TaskStates":{"t":{"State":"running","Restarts":1,"Events":[{"Type":"Started","Details":{"a":"b"}}]}},
		"NetworkStatus":{"Address":"10.0.0.1","DNS":{"Servers":["x"]}},"Health":{"Healthy":true,"Timestamp":1}}]`, w.alloc)
	services := fmt.Sprintf(`[{"AllocID":%q,"Services":[{"ID":"s","ServiceName":"s","Tags":["a"],"Address":"10.0.0.1","Port":80}]}]`, w.alloc)
	internal := "/v1/internal/node/" + w.node
	shown := []string{
		"/v1/jobs?namespace=*", "/v1/job/x?namespace=a", "/v1/job/y?namespace=a", "/v1/job/x/versions?namespace=a&diffs=true", "/v1/job/x/summary?namespace=a", "/v1/nodes?resources=true",
		"/v1/node/" + w.node, "/v1/allocations?namespace=*&resources=true", "/v1/allocation/" + w.alloc, "/v1/services?namespace=*", "/v1/scaling/policies?namespace=*",
		"/v1/job/x/scale?namespace=a", "/v1/namespaces", "/v1/quotas", "/v1/node/pools", "/v1/operator/scheduler/configuration",
	}
	for _, c := range []struct{ name, path, body string }{
		{"a node", internal + "/register", node}, {"a job", "/v1/jobs", fullJob}, {"a template", "/v1/jobs", fullTemplate}, {"a plan", "/v1/job/y/plan?namespace=a", strings.Replace(fullTemplate, `{"Job"`, `{"Diff":true,"Job"`, 1)},
		{"a report", internal + "/allocations", report}, {"services", internal + "/services", services},
		{"a namespace", "/v1/namespace/c", `{"Name":"c","Description":"d","Quota":"q","Meta":{"a":"b"},"Capabilities":{"EnabledTaskDrivers":["a"],"DisabledTaskDrivers":["b"]},"NodePoolConfiguration":{"Default":"default","Allowed":["x"]}}`},
		{"a quota", "/v1/quota/q2", `{"Name":"q2","Limits":[{"Region":"global","RegionLimit":{"CPU":1,"MemoryMB":2,"Devices":[{"Name":"g","Count":1}],"Storage":{"Variables":"1GB"}},"VariablesLimit":1}]}`},
		{"a pool", "/v1/node/pool/p2", `{"Name":"p2","Meta":{"a":"b"},"SchedulerConfiguration":{"SchedulerAlgorithm":"spread","MemoryOversubscriptionEnabled":true}}`},
		{"the scheduler", "/v1/operator/scheduler/configuration", `{"SchedulerAlgorithm":"binpack","PreemptionConfig":{"BatchSchedulerEnabled":true},"MemoryOversubscriptionEnabled":true}`},
		{"a drain", "/v1/node/" + w.node + "/drain", fmt.Sprintf(`{"NodeID":%q,"DrainSpec":{"Deadline":1000,"IgnoreSystemJobs":true},"Meta":{"a":"b"},"MarkEligible":false}`, w.node)},
		{"a dispatch", "/v1/job/y/dispatch?namespace=a", `{"JobID":"y","Meta":{"a":"1"},"Payload":"eA==","Priority":5,"IdPrefixTemplate":"p"}`},
		{"a scaling", "/v1/job/x/scale?namespace=a", `{"Count":1,"Target":{"Group":"g"},"Message":"m","Error":false,"Meta":{"a":{"b":1}}}`},
		{"a revert", "/v1/job/x/revert?namespace=a", `{"JobID":"x","JobVersion":0,"EnforcePriorVersion":1}`},
		{"health", "/v1/deployment/allocation-health/" + w.deploy, fmt.Sprintf(`{"DeploymentID":%q,"HealthyAllocationIDs":[%q],"UnhealthyAllocationIDs":[]}`, w.deploy, w.alloc)},
		{"a variable", "/v1/var/x/y?namespace=a", `{"Path":"x/y","Namespace":"a","Items":{"a":"b"},"Lock":{"TTL":"15s","LockDelay":"1s"}}`},
		{"a policy", "/v1/acl/policy/p1", `{"Name":"p1","Description":"d","Rules":"node { policy = \"read\" }","JobACL":{"Namespace":"a","JobID":"j"}}`},
		{"a token", "/v1/acl/token", `{"Name":"t","Type":"client","Policies":["p1"],"Roles":[{"ID":"","Name":"r"}],"ExpirationTTL":"1h"}`},
		{"a role", "/v1/acl/role", `{"Name":"r","Policies":[{"Name":"p1"}]}`},
		{"a search", "/v1/search", `{"Prefix":"x","Context":"jobs","Namespace":"a"}`},
		{"text", "/v1/jobs/parse", `{"JobHCL":"job \"x\" {}","Canonicalize":true,"Variables":"a=1"}`},
		{"an introduction", "/v1/acl/identity/client-introduction-token", `{"TTL":"5m","NodeName":"n","NodePool":"p"}`},
		{"metadata", "/v1/client/metadata", fmt.Sprintf(`{"NodeID":%q,"Meta":{"a":"b"}}`, ident.New())},
	} {
		t.Run(c.name, func(t *testing.T) {
			var whole any
			if err := json.Unmarshal([]byte(c.body), &whole); err != nil {
				t.Fatal(err)
			}
			n := 0
			try := func(path string, v any) bool {
				body, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				var headers []string
				if strings.HasPrefix(c.path, internal) {
					headers = []string{secretHeader, nodeSecret}
				}
				rec := w.ask("PUT", c.path, token, string(body), headers...)
				switch {
				case w.log.poison != nil:
					t.Fatalf("%s ends every server: %v", path, w.log.poison)
				case rec.Code == 500 && (strings.Contains(rec.Body.String(), "internal error") || rec.Body.Len() == 0):
					t.Errorf("%s panics: %d %q", path, rec.Code, rec.Body)
				case path == "as it is" && (rec.Code == 405 || rec.Code == 404 && rec.Body.Len() == 0):
					t.Fatalf("there is no route %s: %d", c.path, rec.Code)
				case rec.Code == 0 || rec.Code >= 400 && rec.Body.Len() == 0:
					t.Errorf("%s is refused without a word: %d", path, rec.Code)
				}
				if n++; n%50 != 0 && (rec.Code != 200 || !strings.HasPrefix(c.path, internal)) {
					return true
				}
				for _, at := range shown {
					if rec := w.ask("GET", at, token, ""); rec.Code != 200 && rec.Code != 404 {
						t.Errorf("after %s %s answers %d %s", path, at, rec.Code, rec.Body)
						return false
					}
				}
				return true
			}
			try("as it is", whole)
			if c.name == "a job" { // so that what follows is not about jobs that stand nowhere
				for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
					if s := w.store.Snapshot(); len(slices.Collect(s.AllocsByJob(nil, "a", "x"))) > 0 {
						break
					}
					if time.Now().After(end) {
						t.Fatalf("the job is not placed: %s", w.ask("GET", "/v1/job/x/evaluations?namespace=a", token, "").Body)
					}
				}
			}
			variants(whole, "", try)
			try("as it was", whole)
		})
	}
}

// What a report was decoded from is used again for other bodies.
func TestAReportKeepsNothingOfItsBody(t *testing.T) {
	list := []*model.AllocUpdate{{ID: "aaaa", ClientDescription: "aaaa", TaskStates: map[string]*model.TaskState{"aaaa": {State: "aaaa"}}}}
	dense, err := packed.Reports(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []any{list, dense} { // bytes are a text in base64
		body, err := json.Marshal(form)
		if err != nil {
			t.Fatal(err)
		}
		var got reports
		if err := got.UnmarshalJSON(body); err != nil {
			t.Fatal(err)
		}
		for i := range body {
			body[i] = 'b'
		}
		if len(got) != 1 || got[0].ID != "aaaa" || got[0].ClientDescription != "aaaa" || got[0].TaskStates["aaaa"] == nil || got[0].TaskStates["aaaa"].State != "aaaa" {
			t.Errorf("%+v", got)
		}
	}
}
