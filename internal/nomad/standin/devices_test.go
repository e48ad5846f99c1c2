package standin_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"rockpool/internal/api/openapi"
	"rockpool/internal/config"
	"rockpool/internal/nomad/standin"
	"rockpool/tests/contract"
)

// rack is a node with GPUs.
func rack(name string, model string, gpus int) standin.Node {
	return standin.Node{ID: name, Name: name, Runtimes: "io.containerd.runc.v2,runc,runsc", Devices: asList(standin.GPUs(model, gpus, 40960, nil))}
}

// published has every answer that p gets checked against the published documents.
func published(p *platform) *platform {
	p.Helper()
	documents, err := contract.New(openapi.Document, openapi.WebSocket)
	if err != nil {
		p.Fatal(err)
	}
	p.http.Transport = documents.Transport(&http.Transport{}, func(err error) { p.Error(err) })
	return p
}

func asList[T any](v ...T) []T { return v }

func withToken(c *config.Config) { c.Nomad.Token = "t" }

// plainNode has none.
var plainNode = standin.Node{ID: "plain", Name: "plain", Runtimes: "io.containerd.runc.v2,runc"}

func withDevices(size, more string) string {
	return strings.Replace(definition(size), "{", "{"+more+",", 1)
}

// state is what the gateway tells of the pool.
type state struct {
	Idle, Starting, Used, Wanted, Removing int
	Shortage                               *struct {
		Possible int
		Reason   string
	}
	Devices []struct{ Name string }
	Runners []struct{ Reason string }
}

func (p *platform) state() (s state) {
	p.Helper()
	if err := json.Unmarshal([]byte(p.want("GET", "/rockpool/pools/10", "", 200, "")), &s); err != nil {
		p.Fatal(err)
	}
	return s
}

// short waits for a pool that has fewer runners than it wants; possible < 0 = for one that has them all.
func (p *platform) short(what string, idle, possible int) {
	p.Helper()
	p.eventually(fmt.Sprintf("%s: %d idle of %d possible", what, idle, possible), func() bool {
		s := p.state()
		switch {
		case s.Removing > 0: // what was withdrawn is still on its way out
			return false
		case possible < 0:
			return s.Idle == idle && s.Shortage == nil && s.Starting == 0
		}
		return s.Idle == idle && s.Starting == 1 && s.Shortage != nil && s.Shortage.Possible == possible && strings.Contains(s.Shortage.Reason, "cannot be placed")
	})
}

func TestDevicesAreAskedForAsNomadIsTold(t *testing.T) {
	s := standin.New(t, standin.Options{Token: "t"})
	s.Nodes(plainNode, rack("gpu-1", "A100", 4))
	p := published(serve(t, s, withToken))
	const devices = `"devices":[{"name":"nvidia/gpu","count":2,"constraints":[{"attribute":"${device.attr.memory}","operator":">=","value":"40 GiB"}]}]`
	fixed := strings.Replace(withDevices("2", devices), "openhpi/co_execenv_python:3.8", "host", 1) // there is nothing to pull anew
	p.want("PUT", "/execution-environments/10", fixed, 201, "")
	p.pool(2, 0)
	const read = `"devices":[{"name":"nvidia/gpu","count":2,"constraints":[{"attribute":"memory","operator":">=","value":"40 GiB"}]}]`
	p.want("GET", "/execution-environments/10?fetch=true", "", 200, read)
	held := map[string]bool{}
	for _, id := range s.Jobs("10-") {
		r := s.Job(id).TaskGroups[0].Tasks[0].Resources.Devices[0]
		if r.Name != "nvidia/gpu" || *r.Count != 2 || len(r.Constraints) != 2 || r.Constraints[0].LTarget != "${device.attr.memory}" ||
			r.Constraints[1].LTarget != "${device.attr.share}" || r.Constraints[1].Operand != "is_not_set" {
			t.Errorf("%s asks for %+v", id, r)
		}
		held[s.Node(id)] = true
	}
	if len(held) != 1 || !held["gpu-1"] {
		t.Errorf("the runners are on %v", held)
	}
	if n := s.Job("template-10").TaskGroups[0].Tasks[0].Resources.Devices; n != nil {
		t.Errorf("the template's container holds %+v, which no runner has then", n)
	}
	before := s.Calls("PUT /v1/job")
	p.want("PUT", "/execution-environments/10", fixed, 204, "")
	if n := s.Calls("PUT /v1/job"); n > before {
		t.Errorf("the same definition again made %d calls", n-before)
	}
	p.pool(2, 0)
	// Another gateway, or this one after a restart, finds the same.
	p.stop()
	p = published(serve(t, s, withToken))
	p.pool(2, 0)
	p.want("GET", "/execution-environments/10", "", 200, read)
	// Without the field there are no devices.
	old := s.Jobs("10-")
	p.want("PUT", "/execution-environments/10", definition("2"), 204, "")
	p.eventually("runners without devices", func() bool {
		now := s.Jobs("10-")
		return len(now) == 2 && !slices.ContainsFunc(now, func(id string) bool { return slices.Contains(old, id) })
	})
}

func TestWhatNoNodeCanGiveIsRefusedWithTheReason(t *testing.T) {
	s := standin.New(t, standin.Options{Token: "t"})
	p := published(serve(t, s, withToken))
	s.Nodes(plainNode, rack("gpu-1", "A100", 2), rack("gpu-2", "A100", 2))
	for _, c := range []struct{ name, fields, text string }{
		{"another vendor", `"devices":[{"name":"amd/gpu"}]`, "devices[0]: no node in service has a device amd/gpu; there are 4 nvidia/gpu/A100"},
		{"another model", `"devices":[{"name":"nvidia/gpu"},{"name":"nvidia/gpu/H100"}]`, "devices[1]: no node in service has a device nvidia/gpu/H100"},
		{"more than a node has", `"devices":[{"name":"gpu","count":3}]`, "devices[0]: no node in service has 3 healthy devices gpu of one model; the most on one node are 2"},
		{"more than a node has, by two requests", `"devices":[{"name":"gpu","count":2},{"name":"gpu"}]`, "devices: no node in service has all of them together; on all nodes there are 4 nvidia/gpu/A100"},
		{"more memory than any has", `"devices":[{"name":"gpu","constraints":[{"attribute":"memory","operator":">=","value":"80 GiB"}]}]`, "missing devices (on 3 of 3 nodes)"},
		{"only parts, and there are wholes", `"devices":[{"name":"gpu","share":"only"}]`, "missing devices (on 3 of 3 nodes)"},
		{"a class that no node has", `"runtime":"kata"`, `runtime: no node offers the isolation class \"kata\"; the nodes in service offer io.containerd.runc.v2, runc, runsc`},
	} {
		code, got, _ := p.do("PUT", "/execution-environments/10", withDevices("1", c.fields))
		if code != 400 || !strings.Contains(got, c.text) {
			t.Errorf("%s: %d %s, want 400 with %q", c.name, code, got, c.text)
		}
	}
	p.want("GET", "/execution-environments/10?fetch=true", "", 404, "")
	if jobs := s.Jobs(""); len(jobs) > 0 {
		t.Errorf("what was refused left %v", jobs)
	}
	// A class and devices on nodes that have them.
	p.want("PUT", "/execution-environments/10", withDevices("2", `"runtime":"runsc"`), 201, "")
	p.pool(2, 0)
	for _, id := range s.Jobs("10-") {
		if n := s.Node(id); n == "plain" {
			t.Errorf("%s is on a node that does not offer its class", id)
		}
	}
	// A definition that is refused leaves the one before in force.
	p.want("PUT", "/execution-environments/10", withDevices("2", `"runtime":"kata"`), 400, "isolation class")
	p.want("GET", "/execution-environments/10?fetch=true", "", 200, `"runtime":"runsc"`)
	p.pool(2, 0)
}

func TestWhatIsOnlyInUseIsAccepted(t *testing.T) {
	s := standin.New(t, standin.Options{Token: "t"})
	s.Nodes(rack("gpu-1", "A100", 2))
	p := published(serve(t, s, withToken))
	p.want("PUT", "/execution-environments/11", withDevices("2", `"devices":[{"name":"gpu"}]`), 201, "")
	p.eventually("the other environment has all of them", func() bool { return len(s.Jobs("11-")) == 2 })
	p.want("PUT", "/execution-environments/10", withDevices("1", `"devices":[{"name":"gpu","count":2}]`), 201, "")
	p.short("all are in use", 0, 0)
	p.want("DELETE", "/execution-environments/11", "", 204, "")
	p.short("they are free", 1, -1)
}

func TestAClusterThatCannotBeAskedPromisesNothing(t *testing.T) {
	s := standin.New(t, standin.Options{Token: "t"})
	s.Nodes(rack("gpu-1", "A100", 2))
	p := published(serve(t, s, withToken))
	put := func(status int, text string) {
		t.Helper()
		p.want("PUT", "/execution-environments/10", withDevices("1", `"devices":[{"name":"gpu","count":3}]`), status, text)
	}
	s.Fail(standin.Fault{Prefix: "PUT /v1/job/", Status: 500, Text: "No cluster leader"})
	put(500, "could not be found out")
	s.Heal()
	s.Fail(standin.Fault{Prefix: "PUT /v1/job/", Status: 403, Text: "Permission denied"})
	put(500, "could not be found out")
	s.Heal()
	s.Fail(standin.Fault{Prefix: "PUT /v1/job/", Status: 500, Text: "1 error occurred:\n\t* Task group default-group validation failed: 1 error occurred:\n\t* no such unit"})
	put(400, "no such unit")
	s.Heal()
	s.Fail(standin.Fault{Prefix: "GET /v1/nodes", Status: 500, Text: "rpc error: EOF"})
	put(500, "")
	s.Heal()
	// Who may not see the nodes is told less, and the same.
	s.Fail(standin.Fault{Prefix: "GET /v1/nodes", Status: http.StatusForbidden, Text: "Permission denied"})
	put(400, "no node can run the environment's runners, whatever is free: missing devices (on 1 of 1 nodes)")
	if jobs := s.Jobs(""); len(jobs) > 0 {
		t.Errorf("there are %v", jobs)
	}
}

func TestAPoolFollowsTheDevicesThereAre(t *testing.T) {
	s := standin.New(t, standin.Options{Token: "t"})
	first := rack("gpu-1", "A100", 4)
	s.Nodes(plainNode, first)
	p := published(serve(t, s, withToken))
	p.want("PUT", "/execution-environments/10", withDevices("10", `"devices":[{"name":"nvidia/gpu"}]`), 201, "")
	p.short("10 wanted, 4 there", 4, 4)
	st := p.state()
	if st.Wanted != 10 || len(st.Devices) != 1 || st.Devices[0].Name != "nvidia/gpu" {
		t.Errorf("the pool is told as %+v", st)
	}
	p.want("GET", "/statistics/execution-environments", "", 200, `"devices":[{"name":"nvidia/gpu","count":1}],"possibleRunners":4`)
	p.want("GET", "/rockpool/metrics", "", 200, `rockpool_gateway_pool_possible_runners{environment="10"} 4`)
	evaluations := s.Evaluations()
	// Nothing is tried in vain while nothing changes, also after a listing.
	s.Cut()
	p.eventually("the stream is there again", func() bool { return s.Subscribers() == 1 })
	p.short("after a listing", 4, 4)
	if n := s.Evaluations(); n != evaluations || s.Blocked() != 1 {
		t.Errorf("%d evaluations were made while nothing changed, and %d wait", n-evaluations, s.Blocked())
	}
	second := rack("gpu-2", "H100", 3)
	s.Nodes(plainNode, first, second)
	p.short("a node joined", 7, 7)
	s.Nodes(plainNode, second)
	p.short("a node left", 3, 3)
	var used []string
	for range 3 {
		used = append(used, p.claim())
	}
	p.short("all are used", 0, 3)
	code, got, _ := p.do("POST", "/runners", `{"executionEnvironmentId":10,"inactivityTimeout":180}`)
	if code != 500 || !strings.Contains(got, "the cluster has no room for more") || !strings.Contains(got, "NOMAD_OVERLOAD") {
		t.Errorf("a claim beyond what there is: %d %s", code, got)
	}
	// A gateway that starts finds out what it has to wait for.
	p.stop()
	p = published(serve(t, s, withToken))
	p.short("after a restart", 0, 3)
	p.want("DELETE", "/runners/"+used[0], "", 204, "")
	p.short("one was given back", 1, 3)
	p.want("PUT", "/execution-environments/10", withDevices("1", `"devices":[{"name":"nvidia/gpu"}]`), 204, "")
	p.short("as many as there are are wanted", 1, -1)
}

func TestAPoolOfScarceRunnersIsReplacedWithinWhatThereIs(t *testing.T) {
	s := standin.New(t, standin.Options{Token: "t"})
	s.Nodes(rack("gpu-1", "A100", 3))
	p := published(serve(t, s, withToken))
	p.want("PUT", "/execution-environments/10", withDevices("3", `"devices":[{"name":"nvidia/gpu"}]`), 201, "")
	p.short("three", 3, -1)
	old := s.Jobs("10-")
	p.want("PUT", "/execution-environments/10", withDevices("3", `"devices":[{"name":"gpu"}]`), 204, "")
	p.eventually("all are replaced, though there is no room beside them", func() bool {
		now := s.Jobs("10-")
		return len(now) == 3 && !slices.ContainsFunc(now, func(id string) bool { return slices.Contains(old, id) })
	})
	p.short("three new ones", 3, -1)
}
