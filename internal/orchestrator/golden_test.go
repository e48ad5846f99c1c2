package orchestrator_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/driver/mock"
	nodeagent "rockpool/internal/orchestrator/node"
)

var update = flag.Bool("update", false, "write the golden files anew")

// transcript is what a section of a golden file is written to: requests and their answers, with all that differs between two runs masked.
type transcript struct {
	mu  sync.Mutex
	out strings.Builder
}

func (r *transcript) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(&r.out, format, args...)
}

func (r *transcript) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// recorded notes what a client asks, and what it is answered. It sees what the wire has, except that bodies are unpacked.
type recorded struct {
	*golden
	next http.RoundTripper
}

func (r *recorded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if r.silent {
		return resp, nil
	}
	if resp.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		if body, err = io.ReadAll(z); err != nil {
			return nil, err
		}
	}
	target := req.URL.EscapedPath()
	if q := req.URL.RawQuery; q != "" {
		plain, err := url.QueryUnescape(q)
		if err != nil {
			return nil, err
		}
		target += "?" + plain
	}
	request, answer := req.Method+" "+mask(target), fmt.Sprintf("%d%s\n%s", resp.StatusCode, presence(resp.Header), r.body(resp.Header, body))
	if r.seen[request] == answer {
		answer = "(as before)\n"
	} else {
		r.seen[request] = answer
	}
	r.note("%s\n%s\n", request, answer)
	return resp, nil
}

// presence names those of an answer's headers that are part of the contract.
func presence(h http.Header) string {
	var out strings.Builder
	for _, name := range []string{"X-Nomad-Index", "X-Nomad-Knownleader", "X-Nomad-Lastcontact", "X-Nomad-Nexttoken", "Digest", "Retry-After", "Content-Type"} {
		switch v := h.Get(name); {
		case v == "":
		case name == "Content-Type":
			if v != "application/json" {
				out.WriteString(" " + v)
			}
		case name == "X-Nomad-Nexttoken", name == "X-Nomad-Knownleader":
			out.WriteString(" " + strings.TrimPrefix(name, "X-Nomad-") + "=" + mask(v))
		default:
			out.WriteString(" " + strings.TrimPrefix(name, "X-Nomad-"))
		}
	}
	return out.String()
}

// body writes JSON with its keys sorted, several values one a line, and anything else as it is.
func (r *recorded) body(h http.Header, body []byte) string {
	if len(body) == 0 {
		return "(no body)\n"
	}
	if bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
		return "(an archive)\n"
	}
	var values []any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	for {
		var v any
		err := d.Decode(&v)
		if err == io.EOF {
			break
		}
		if err != nil || !strings.HasPrefix(h.Get("Content-Type"), "application/json") {
			return mask(strings.TrimSuffix(string(body), "\n")) + "\n"
		}
		values = append(values, v)
	}
	var out strings.Builder
	for _, v := range values {
		v = masked("", v)
		if r.shape {
			v = shape(v)
		}
		out.WriteString(render(v, len(values) == 1))
	}
	return out.String()
}

func render(v any, indent bool) string {
	var out strings.Builder
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		panic(err) // it was decoded before
	}
	return out.String()
}

var masks = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<id>"},
	{regexp.MustCompile(`[12]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "<time>"},
	{regexp.MustCompile(`(127\.0\.0\.1|\[::1\]):\d+`), "<address>"},
	{regexp.MustCompile(`\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`), "<ip>"},
	{regexp.MustCompile(`((reset |modify )index:? |\b[iI]ndex=|\bcas=)[1-9]\d*`), "${1}<index>"},
	{regexp.MustCompile(`\bprefix=[0-9a-f]{5,8}\b`), "prefix=<id>"},
	{regexp.MustCompile(`dispatch-\d+-[0-9a-f]{8}`), "dispatch-<time>-<id>"},
	{regexp.MustCompile(`periodic-\d+`), "periodic-<time>"},
	{regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.[\w-]+`), "<jwt>"},
}

func mask(s string) string {
	if !strings.ContainsAny(s, "0123456789") && !strings.Contains(s, "eyJ") && !strings.Contains(s, "prefix=") {
		return s // most strings, and there are many
	}
	for _, m := range masks {
		s = m.what.ReplaceAllString(s, m.with)
	}
	return s
}

// ofTheMachine are objects whose content comes from the machine that the test runs on.
var ofTheMachine = map[string]bool{"Environment": true, "Disk": true, "Attributes": true}

// masked replaces what differs between two runs. What is zero, null or empty stays, for that is what clients stumble over.
func masked(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if ofTheMachine[key] && v["DiskMB"] == nil {
			return "<of the machine>"
		}
		for k := range v {
			v[k] = masked(k, v[k])
		}
		switch key {
		case "ClassEligibility": // classes are digests of what the machine is like, its kernel among it
			classes := slices.SortedFunc(maps.Keys(v), func(a, b string) int { return strings.Compare(fmt.Sprint(v[a], a), fmt.Sprint(v[b], b)) })
			for i, class := range classes {
				of := v[class]
				delete(v, class)
				v[fmt.Sprintf("<class %d of the machine>", i+1)] = of
			}
		case "ACL":
			if _, ok := v["Enabled"]; ok {
				v["Enabled"] = "<as the run has it>"
			}
		case "LastDrain":
			v["AccessorID"] = "<as the run has it>"
		}
		if v["IsDir"] == true {
			v["Size"] = "<of the file system>"
		}
		return v
	case []any:
		for i := range v {
			v[i] = masked(key, v[i])
		}
		if key != "Events" {
			byContent(v)
		}
		return v
	case json.Number:
		n, err := v.Int64()
		switch {
		case err != nil:
			return "<fraction>"
		case n == 0:
			return v
		case strings.HasSuffix(key, "Index"), key == "LastContact", key == "last_log_index":
			return "<index>"
		case n > 1.5e18 && n < 3e18:
			return "<nanoseconds>"
		case n > 1_500_000_000 && n < 3_000_000_000:
			return "<seconds>"
		case key == "AllocationTime":
			return "<duration>"
		case key == "Value" && n >= 20_000 && n <= 32_000:
			return "<port>"
		}
		return v
	case string:
		if (strings.HasSuffix(key, "_index") || strings.HasSuffix(key, "_term")) && v != "0" {
			return "<index>"
		}
		switch key {
		case "OneTimeSecretID":
			return "<secret>"
		case "fsm_pending":
			return "<count>"
		}
		return mask(v)
	}
	return v
}

// byContent sorts things that have random ids: their order is random too. All others keep theirs.
func byContent(list []any) {
	for _, v := range list {
		if _, ok := v.(map[string]any); !ok || !strings.Contains(render(v, false), "<id>") {
			return
		}
	}
	slices.SortFunc(list, func(x, y any) int { return strings.Compare(render(x, false), render(y, false)) })
}

// shape leaves of a value only what kinds it is made of: for measurements.
func shape(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = shape(v[k])
		}
		return v
	case []any:
		if len(v) == 0 {
			return v
		}
		return []any{shape(v[0])}
	case nil:
		return nil
	case string:
		switch v {
		case "<nanoseconds>", "<seconds>", "<index>", "<fraction>", "<port>":
			return "number"
		case "<of the machine>":
			return v
		}
		return "string"
	case bool:
		return "bool"
	}
	return "number"
}

// golden is one run of all commands against one cluster.
type golden struct {
	transcript
	t      *testing.T
	c      *cluster
	api    *api.Client // of the command that runs; what it asks is noted
	node   *nodeagent.Agent
	mock   *mock.Driver
	acl    bool
	token  string            // that of api
	silent bool              // nothing is noted
	shape  bool              // only the kinds of values are noted
	seen   map[string]string // of the section: the newest answer to a request
}

// command is a command of Nomad's client: what it asks, and the rights that are just enough for it.
type goldenCommand struct {
	name   string
	rights string // of a policy. "" = management
	run    func(g *golden)
}

// ok says that the client of Nomad understood an answer.
func (g *golden) ok(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Errorf("nomad/api: %v", err)
	}
}

// quietly does what is no part of a command: what it needs beforehand, and waits.
func (g *golden) quietly(f func()) {
	g.silent = true
	defer func() { g.silent = false }()
	f()
}

// raw asks what the module nomad/api has no function for.
func (g *golden) raw(method, path, body string) {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.c.http.URL+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	if g.token != "" {
		r.Header.Set("X-Nomad-Token", g.token)
	}
	resp, err := (&http.Client{Transport: g.transport()}).Do(r)
	if err != nil {
		g.t.Errorf("%s %s: %v", method, path, err)
		return
	}
	resp.Body.Close()
}

func (g *golden) transport() http.RoundTripper {
	return &recorded{g, g.c.http.Client().Transport}
}

// as makes the client whose requests are noted.
func (g *golden) as(token string) {
	g.t.Helper()
	g.token = token
	client, err := api.NewClient(&api.Config{Address: g.c.http.URL, SecretID: token, HttpClient: &http.Client{Transport: g.transport()}})
	if err != nil {
		g.t.Fatal(err)
	}
	g.api = client
}

// mode is how a run asks.
type mode struct {
	name  string
	acl   bool
	exact bool // each command with just its rights
}

var modes = []mode{{name: "without access control"}, {name: "with a management token", acl: true}, {name: "with just the rights", acl: true, exact: true}}

func TestTheCommandLineClientsRequests(t *testing.T) {
	driven, routes := map[string]bool{}, map[string]string{}
	var mu sync.Mutex // guards both, and ran
	ran := 0
	one := func(m mode) func(*testing.T) {
		return func(t *testing.T) {
			if !*update {
				t.Parallel() // they mostly wait
			}
			var c *cluster
			if m.acl {
				c = bootstrapped(t, orchestrator.ServerConfig{})
			} else {
				c = start(t, orchestrator.ServerConfig{})
			}
			g := &golden{t: t, c: c, acl: m.acl}
			c.asked = func(r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/heartbeat") {
					return // whether one comes in time is left to chance
				}
				mu.Lock()
				defer mu.Unlock()
				driven[r.Method+" "+r.URL.EscapedPath()] = true
			}
			g.furnish()
			for _, s := range sections(m.acl) {
				g.out.Reset()
				g.seen = map[string]string{}
				for i, cmd := range s.commands {
					g.note("## %s\n\n", cmd.name)
					g.as(c.token)
					if m.exact && cmd.rights != "" {
						name := fmt.Sprintf("rights-%s-%d", s.name, i)
						c.policy(name, cmd.rights)
						g.as(c.tokenOf(name).SecretID)
					}
					g.shape = false
					cmd.run(g)
					if t.Failed() && !*update {
						t.Fatalf("%s: %s", s.name, cmd.name)
					}
				}
				compare(t, s.name, g.text())
			}
			c.stop() // before what was asked is read
			mu.Lock()
			defer mu.Unlock()
			for _, r := range c.server.Routes() {
				routes[r.Name] = r.Method + " " + r.Path
			}
			ran++
		}
	}
	t.Run("commands", func(t *testing.T) {
		for _, m := range modes {
			t.Run(m.name, one(m))
		}
	})
	if ran == len(modes) {
		undriven(t, routes, driven)
	}
}

// compare holds a text to a golden file.
func compare(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: make it with -update", err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	heading := ""
	for i := range max(len(g), len(w)) {
		at := func(l []string) string {
			if i < len(l) {
				return l[i]
			}
			return "(the end)"
		}
		if strings.HasPrefix(at(w), "## ") || strings.HasPrefix(at(w), "GET ") || strings.HasPrefix(at(w), "PUT ") || strings.HasPrefix(at(w), "DELETE ") {
			heading = at(w)
		}
		if at(g) != at(w) {
			from := max(i-3, 0)
			t.Errorf("%s:%d, in %q, differs:\ngot\n%s\nwant\n%s", file, i+1, heading, strings.Join(g[from:min(i+8, len(g))], "\n"), strings.Join(w[from:min(i+8, len(w))], "\n"))
			return
		}
	}
}

// elsewhere are the routes that no command here asks for, and why.
var elsewhere = map[string]string{
	"job.explanation":         "Rockpool's own: explain_test",
	"job.mark":                "Rockpool's own: mark_test",
	"node.fences":             "Rockpool's own: exec_test",
	"image.resolve":           "Rockpool's own: images_test",
	"client.execution":        "Rockpool's own: exec_test",
	"client.execution.signal": "Rockpool's own: exec_test",
	"client.execution.kill":   "Rockpool's own: exec_test",
	"client.files.apply":      "Rockpool's own: exec_test",
	"client.files.list":       "Rockpool's own: exec_test",
	"client.files.raw":        "Rockpool's own: exec_test",
	"agent.keyring.install":   "a lone server has no gossip: operator_test and membership", "agent.keyring.use": "a lone server has no gossip: operator_test and membership", "agent.keyring.remove": "a lone server has no gossip: operator_test and membership",
	"node.watch.heartbeat": "it comes later than all of this takes: node/server_test",
	"snapshot.restore":     "it changes everything: operator_test",
}

// undriven fails for each route that was not asked for. A write's POST is its PUT, by the same handler.
func undriven(t *testing.T, routes map[string]string, driven map[string]bool) {
	type pattern struct {
		name string
		key  string // a path that is spelled out goes before one with a variable in its place
		path *regexp.Regexp
	}
	variable, rest := regexp.MustCompile(`\{[^/]*?\}`), regexp.MustCompile(`\{[^/]*?:\.\+\}`)
	var patterns []pattern
	for name, r := range routes {
		path := variable.ReplaceAllString(rest.ReplaceAllString(r, ".+"), "[^/]+")
		patterns = append(patterns, pattern{name, variable.ReplaceAllString(r, "\xff"), regexp.MustCompile("^" + path + "$")})
	}
	slices.SortFunc(patterns, func(x, y pattern) int { return strings.Compare(x.key, y.key) })
	of := func(request string) string {
		i := slices.IndexFunc(patterns, func(p pattern) bool { return p.path.MatchString(request) })
		if i < 0 {
			return ""
		}
		return patterns[i].name
	}
	seen := map[string]bool{}
	for request := range driven {
		seen[strings.TrimSuffix(of(request), ".put")] = true
	}
	for name, route := range routes {
		name = strings.TrimSuffix(strings.TrimSuffix(name, ".put"), ".post")
		if why := elsewhere[name]; !seen[name] && why == "" {
			t.Errorf("no command asks for %s, %s", name, route)
		} else if seen[name] && why != "" {
			t.Errorf("%s is asked for: it needs no exception", name)
		}
	}
	known := map[string]bool{}
	for name := range routes {
		known[strings.TrimSuffix(strings.TrimSuffix(name, ".put"), ".post")] = true
	}
	for name := range elsewhere {
		if !known[name] {
			t.Errorf("the exception %s is no route", name)
		}
	}
}
