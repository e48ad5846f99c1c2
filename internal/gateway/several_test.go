package gateway_test

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// among starts a gateway that shares a cluster with others.
func among(t *testing.T, c *nomadtest.Cluster, change ...func(*config.Config)) *harness {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return start(t, c, append(change, func(cfg *config.Config) {
		cfg.Server.Port, cfg.Server.PeerSecret = uint16(port), "what all the gateways have"
		cfg.Server.PeerAddress = cmp.Or(cfg.Server.PeerAddress, "http://127.0.0.1:"+strconv.Itoa(port))
		if cfg.Server.TLS.Active {
			cfg.Server.PeerAddress = strings.Replace(cfg.Server.PeerAddress, "http", "https", 1)
		}
	})...)
}

// two are gateways on one cluster with environment 10, which the first was told of.
func two(t *testing.T, c *nomadtest.Cluster, size string, idle int) (a, b *harness) {
	t.Helper()
	a, b = among(t, c), among(t, c)
	a.want("PUT", "/execution-environments/10", env(size), 201, "")
	a.pool("10", idle, 0)
	b.pool("10", idle, 0)
	return a, b
}

// via is where a balancer may send what was meant for another gateway.
func (h *harness) via(url string) string {
	_, path, _ := strings.Cut(url, "/api/v1")
	return strings.Replace(h.url, "http", "ws", 1) + path
}

func TestARunnerIsUsableThroughEveryGatewayAtOnce(t *testing.T) {
	for name, prepare := range map[string]func(*nomadtest.Cluster){
		"locks": func(*nomadtest.Cluster) {}, "no locks": (*nomadtest.Cluster).NoLocks,
	} {
		t.Run(name, func(t *testing.T) {
			c := nomadtest.New(t)
			prepare(c)
			a, b := two(t, c, "3", 3)
			for range 5 {
				r := a.claim("0")
				b.want("GET", "/runners/"+r+"/files", "", 200, "files")
				b.want("DELETE", "/runners/"+r, "", 204, "")
				a.eventually("the other gateway forgets it", func() bool { code, _, _ := a.do("DELETE", "/runners/"+r, ""); return code == 410 })
			}
			a.pool("10", 3, 0)
			b.pool("10", 3, 0)
			if n := len(c.Jobs("10-")); n != 3 {
				t.Errorf("there are %d runners", n)
			}
			leads := 0
			for path, locked := range c.Variables() {
				if path == "rockpool/gateways/lead" && (locked || name == "no locks") {
					leads++
				}
			}
			if leads != 1 {
				t.Errorf("the variables are %v", c.Variables())
			}
			b.stop()
			a.stop()
			if left := c.Variables(); len(left) != 0 {
				t.Errorf("after an orderly stop there are %v", left)
			}
		})
	}
}

// The cluster is asked once for a runner that nobody knows, however many ask for it.
func TestStrangersCannotAskTheClusterThroughUs(t *testing.T) {
	c := nomadtest.New(t)
	_, b := two(t, c, "1", 1)
	before := c.Calls("GET /v1/job/{id}")
	const unknown = "/runners/10-0c9f8fd2-c5ff-11f0-8de9-0242ac120002"
	for range 50 {
		b.want("DELETE", unknown, "", 410, "not known")
		b.want("DELETE", "/runners/10-nonsense", "", 410, "not known")
	}
	if n := c.Calls("GET /v1/job/{id}") - before; n < 1 || n > 2 {
		t.Errorf("%d questions", n)
	}
}

func TestAnExecutionIsConnectedThroughAnotherGateway(t *testing.T) {
	a, b := two(t, nomadtest.New(t), "2", 2)
	r := a.claim("0")
	url := a.execute(r, `{"command":"echo hi"}`)
	if _, id, _ := strings.Cut(url, "executionID="); len(id) != 36 || id[14] != '4' || !strings.Contains("89ab", id[19:20]) {
		t.Errorf("the id %s is no UUID of version 4", id)
	}
	// What cannot become a WebSocket leaves it where it is, with the answers of the contract.
	for name, change := range map[string]struct {
		header http.Header
		status int
	}{
		"without a token":  {http.Header{}, 401},
		"a foreign origin": {http.Header{"Poseidon-Token": {"secret"}, "Origin": {"https://evil.example"}}, 403},
	} {
		_, resp, err := websocket.DefaultDialer.Dial(b.via(url), change.header)
		if err == nil || resp == nil || resp.StatusCode != change.status {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
	_, path, _ := strings.Cut(b.via(url), "/api/v1")
	b.want("GET", path, "", 400, "handshake")
	b.messages(b.dial(b.via(url)), `{"type":"start"}`, `{"type":"stdout","data":"hi\n"}`, `{"type":"exit","data":0}`)
	for _, h := range []*harness{a, b} {
		_, resp, err := websocket.DefaultDialer.Dial(h.via(url), http.Header{"Poseidon-Token": {"secret"}})
		if err == nil || resp == nil || resp.StatusCode != 404 {
			t.Errorf("the second connect: %v %v", resp, err)
		}
	}
}

// Input, the client's Close and a signal of the extended protocol go through.
func TestARelayedSessionIsOneLikeAnyOther(t *testing.T) {
	a, b := two(t, nomadtest.New(t), "1", 1)
	r := a.claim("0")
	conn := b.dial(b.via(a.execute(r, `{"command":"cat","tty":false}`)), "rockpool.v1")
	if conn.Subprotocol() != "rockpool.v1" {
		t.Fatalf("the subprotocol is %q", conn.Subprotocol())
	}
	for _, m := range []struct {
		kind int
		data string
	}{{websocket.BinaryMessage, "some input"}, {websocket.TextMessage, `{"type":"eof"}`}} {
		if err := conn.WriteMessage(m.kind, []byte(m.data)); err != nil {
			t.Fatal(err)
		}
	}
	got, code := b.rest(conn)
	if all := strings.Join(got, "\n"); code != 1000 || !strings.Contains(all, "some input") || !strings.Contains(all, `"exit"`) {
		t.Errorf("%q and %d", got, code)
	}
	// A client that closes.
	conn = b.dial(b.via(a.execute(r, `{"command":"cat"}`)))
	if _, data, err := conn.ReadMessage(); err != nil || string(data) != `{"type":"start"}` {
		t.Fatal(string(data), err)
	}
	if err := conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, code := b.rest(conn); len(got) != 0 || code != 1000 {
		t.Errorf("after our Close: %q and %d", got, code)
	}
	// The gateway between stops.
	conn = b.dial(b.via(a.execute(r, `{"command":"cat"}`)))
	if _, data, err := conn.ReadMessage(); err != nil || string(data) != `{"type":"start"}` {
		t.Fatal(string(data), err)
	}
	var stop sync.WaitGroup
	stop.Go(b.stop) // which waits for the client to close too
	b.messages(conn, `{"type":"error","data":"Error executing the request"}`)
	stop.Wait()
}

// One key is one claim, whichever gateways get it at the same time and however late the events are.
func TestOneKeyIsOneClaimThroughAllGateways(t *testing.T) {
	c := nomadtest.New(t)
	a, b := two(t, c, "8", 8)
	c.Silence(true)
	const claim = `{"executionEnvironmentId":10,"inactivityTimeout":60}`
	all := map[string]bool{}
	for key := range 4 {
		var mu sync.Mutex
		got := map[string]int{}
		var wg sync.WaitGroup
		for _, h := range []*harness{a, b, a, b, a, b} {
			wg.Go(func() {
				code, body := h.keyed("key "+strconv.Itoa(key), claim)
				mu.Lock()
				defer mu.Unlock()
				if code != 200 {
					t.Errorf("%d %s", code, body)
				}
				got[body]++
			})
		}
		wg.Wait()
		if len(got) != 1 {
			t.Errorf("one key gave %v", got)
		}
		for body := range got {
			all[body] = true
		}
		if code, body := b.keyed("key "+strconv.Itoa(key), `{"executionEnvironmentId":10,"inactivityTimeout":61}`); code != 400 || !strings.Contains(body, "Idempotency-Key") {
			t.Errorf("another request under the key: %d %s", code, body)
		}
	}
	used := 0
	for _, id := range c.Jobs("10-") {
		if c.Meta(id)["used"] == "true" {
			used++
		}
	}
	if len(all) != 4 || used != 4 {
		t.Errorf("4 keys claimed %d runners, and gave %v", used, all)
	}
	c.Silence(false)
	a.pool("10", 8, 4)
	b.pool("10", 8, 4)
	// With its runner a key ends, at all gateways.
	_, first := a.keyed("key 0", claim)
	var r struct{ RunnerID string }
	if err := json.Unmarshal([]byte(first), &r); err != nil {
		t.Fatal(err)
	}
	a.want("DELETE", "/runners/"+r.RunnerID, "", 204, "")
	b.pool("10", 8, 3)
	if code, body := b.keyed("key 0", claim); code != 200 || body == first {
		t.Errorf("after its runner's end the key gave %d %s", code, body)
	}
}

// An environment that one gateway is told of is everybody's, and so is its end.
func TestEnvironmentsAreEverybodys(t *testing.T) {
	c := nomadtest.New(t)
	a, b := two(t, c, "2", 2)
	b.want("PUT", "/execution-environments/10", env("1"), 204, "")
	a.pool("10", 1, 0)
	a.eventually("the size", func() bool {
		_, body, _ := a.do("GET", "/execution-environments/10", "")
		return strings.Contains(body, `"prewarmingPoolSize":1`)
	})
	b.want("PUT", "/execution-environments/11", env("1"), 201, "")
	a.pool("11", 1, 0)
	a.want("DELETE", "/execution-environments/11", "", 204, "")
	b.eventually("the end", func() bool { code, _, _ := b.do("GET", "/execution-environments/11", ""); return code == 404 })
	b.eventually("nothing is left", func() bool { return len(c.Jobs("11-")) == 0 && len(c.Jobs("template-11")) == 0 })
	// Again under the same id, at once.
	a.want("PUT", "/execution-environments/11", env("1"), 201, "")
	b.pool("11", 1, 0)
	a.pool("11", 1, 0)
}

// A runner lives as long as it is used through any gateway, and no longer.
func TestUseThroughAnotherGatewayCounts(t *testing.T) {
	t.Parallel()
	c := nomadtest.New(t)
	a, b := two(t, c, "1", 1)
	r := a.claim("1")
	conn := b.dial(b.via(b.execute(r, `{"command":"cat"}`)))
	for range 12 { // 2.4 s
		b.want("GET", "/runners/"+r+"/files", "", 200, "files")
		tick := time.NewTimer(200 * time.Millisecond)
		<-tick.C
	}
	began := time.Now()
	b.messages(conn, `{"type":"start"}`, `{"type":"timeout"}`)
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it expired after %v", d)
	}
	for _, h := range []*harness{a, b} {
		h.eventually("it is gone", func() bool { code, _, _ := h.do("GET", "/runners/"+r+"/files", ""); return code == 410 })
	}
	a.eventually("its job is gone", func() bool { return len(c.Jobs(r)) == 0 })
}

// The gateway that leads leaves in order: another leads within a second or two, and nothing is doubled.
func TestTheLeadIsHandedOver(t *testing.T) {
	t.Parallel()
	c := nomadtest.New(t)
	a, b := two(t, c, "3", 3)
	leads := func(h *harness, want string) func() bool {
		return func() bool {
			_, body, _ := h.do("GET", "/rockpool/metrics", "")
			since := !strings.Contains(body, "\nrockpool_gateway_leads_since_timestamp_seconds 0\n")
			return strings.Contains(body, "\nrockpool_gateway_leads "+want+"\n") && since == (want == "1")
		}
	}
	a.eventually("one leads", func() bool { return leads(a, "1")() && leads(b, "0")() || leads(a, "0")() && leads(b, "1")() })
	if leads(b, "1")() {
		a, b = b, a
	}
	r := a.claim("3") // whose timer goes over too
	b.pool("10", 3, 1)
	began := time.Now() // the other one takes over before this one has ended
	a.stop()
	b.eventually("it is watched over and replaced", func() bool { i, u := b.stats("10"); return i == 3 && u == 0 })
	if d := time.Since(began); d < 3*time.Second {
		t.Errorf("that took %v", d)
	}
	b.eventually("the second leads", leads(b, "1"))
	b.want("GET", "/runners/"+r+"/files", "", 410, "not known")
	b.claim("0")
	b.pool("10", 3, 1)
	b.eventually("there are no more runners than these", func() bool { return len(c.Jobs("10-")) == 4 })
}

// plant writes a variable below those of the gateways, with a lock on it as theirs have.
func plant(t *testing.T, c *nomadtest.Cluster, path string, items map[string]string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"Path": path, "Items": items, "Lock": map[string]string{"TTL": "10m", "LockDelay": "1s"}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest("PUT", c.URL+"/v1/var/"+path+"?lock-acquire", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := resp.Body.Close(); err != nil || resp.StatusCode != 200 {
		t.Fatalf("planting: %d %v", resp.StatusCode, err)
	}
}

// Whoever may write the variables of the gateways, and even knows what they wrote themselves, is sent nothing: no token, no session, no question.
func TestAPlantedGatewayIsSentNothing(t *testing.T) {
	c := nomadtest.New(t)
	a, b := two(t, c, "3", 3)
	var asked atomic.Int64
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		t.Errorf("the planted gateway was asked for %s with %v", r.URL, r.Header)
	}))
	defer evil.Close()
	const prefix = "rockpool/gateways/instance/"
	for path := range c.Variables() {
		id, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		// The executions of both gateways would be taken for the planted ones'.
		for i, items := range []map[string]string{
			{"url": evil.URL, "secret": "x"},
			{"url": evil.URL, "proof": c.Variable(path)["proof"]},
			{"url": evil.URL, "proof": ""},
		} {
			plant(t, c, prefix+id[:8]+"-0000-4000-8000-00000000000"+strconv.Itoa(i), items)
		}
	}
	before := c.Calls("GET /v1/var/{path...}")
	a.eventually("the planted ones were looked at by both", func() bool { return c.Calls("GET /v1/var/{path...}") >= before+24 })
	for range 10 {
		r := a.claim("0")
		a.messages(a.dial(a.via(b.execute(r, `{"command":"echo hi"}`))), `{"type":"start"}`, `{"type":"stdout","data":"hi\n"}`, `{"type":"exit","data":0}`)
		b.messages(b.dial(b.via(a.execute(r, `{"command":"echo hi"}`))), `{"type":"start"}`, `{"type":"stdout","data":"hi\n"}`, `{"type":"exit","data":0}`)
		b.want("DELETE", "/runners/"+r, "", 204, "")
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the planted gateway was asked %d times", n)
	}
}

// What one gateway passes on to another has no secret of the client in it, and is of no use for anything else.
func TestATokenIsNotPassedOn(t *testing.T) {
	c := nomadtest.New(t)
	var b *harness
	var mu sync.Mutex
	var passed []*http.Request
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		passed = append(passed, r.Clone(r.Context()))
		mu.Unlock()
		target, _ := url.Parse(strings.TrimSuffix(b.url, "/api/v1"))
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
	}))
	defer between.Close()
	a := among(t, c)
	b = among(t, c, func(cfg *config.Config) { cfg.Server.PeerAddress = between.URL })
	a.want("PUT", "/execution-environments/10", env("2"), 201, "")
	b.pool("10", 2, 0)
	a.pool("10", 2, 0) // it may hear of them later
	r := a.claim("0")
	header := http.Header{"Poseidon-Token": {"secret"}, "Authorization": {"Bearer secret"}, "Cookie": {"a=secret"}, "Baggage": {"x=y"}}
	conn, _, err := websocket.DefaultDialer.Dial(a.via(b.execute(r, `{"command":"echo hi"}`)), header)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a.messages(conn, `{"type":"start"}`, `{"type":"stdout","data":"hi\n"}`, `{"type":"exit","data":0}`)
	mu.Lock()
	defer mu.Unlock()
	var word string
	for _, p := range passed {
		for name, values := range p.Header {
			if strings.Contains(strings.Join(values, " "), "secret") {
				t.Errorf("%s carries %s: %q", p.URL, name, values)
			}
		}
		if w := p.Header.Get("Rockpool-Relayed"); w != "" {
			word = w
			if p.Header.Get("Baggage") != "x=y" {
				t.Error("the headers of tracing are lost")
			}
		}
	}
	if word == "" {
		t.Fatal("nothing was passed on")
	}
	for path, h := range map[string]*harness{
		"/runners/" + r + "/files": b, // another request
		"/execution-environments":  b,
		strings.SplitN(passed[len(passed)-1].URL.RequestURI(), "/api/v1", 2)[1]: a, // another gateway
	} {
		for _, forged := range []string{word, "1", "x.y.z", word + "x"} {
			req, err := http.NewRequest("GET", h.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Rockpool-Relayed", forged)
			resp, err := h.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if err := resp.Body.Close(); err != nil || resp.StatusCode != 401 {
				t.Errorf("%s with %q: %d %v", path, forged, resp.StatusCode, err)
			}
		}
	}
}

// Who does not know the secret of the gateways asks them nothing.
func TestTheWireBetweenGatewaysIsTheirs(t *testing.T) {
	c := nomadtest.New(t)
	a, _ := two(t, c, "1", 1)
	r := a.claim("0")
	for _, method := range []string{"GET", "DELETE"} {
		req, err := http.NewRequest(method, a.url+"/rockpool/peer/runners/"+r, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"", "secret", "x"} {
			req.Header.Set("Rockpool-Gateway", secret)
			req.Header.Set("Poseidon-Token", "secret")
			resp, err := a.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil || resp.StatusCode != 401 {
				t.Errorf("%s with %q: %d", method, secret, resp.StatusCode)
			}
		}
	}
	a.want("GET", "/runners/"+r+"/files", "", 200, "files")
}

func TestAClusterWithoutVariablesIsToldOf(t *testing.T) {
	c := nomadtest.New(t)
	c.NoVariables()
	cfg := config.Default()
	cfg.Server.Port, cfg.Nomad.Address, cfg.Server.PeerAddress, cfg.Server.PeerSecret = 0, c.URL, "http://127.0.0.1:1", "what all the gateways have"
	if err := runGateway(t, cfg); err == nil || !strings.Contains(err.Error(), "rockpool/gateways/") {
		t.Errorf("got %v", err)
	}
}

// Which gateway a definition is put through makes no difference to what the one that leads does about its image.
func TestATagThatMayHaveMovedIsRolledByTheOneThatLeads(t *testing.T) {
	c := nomadtest.New(t)
	_, b := two(t, c, "2", 2)
	tagged := strings.Replace(env("2"), `"host"`, `"course/python:3"`, 1)
	b.want("PUT", "/execution-environments/10", tagged, 204, "")
	fresh := func(before []string) func() bool {
		return func() bool {
			now := c.Jobs("10-")
			for _, id := range before {
				for _, other := range now {
					if id == other {
						return false
					}
				}
			}
			return len(now) == 2
		}
	}
	b.pool("10", 2, 0)
	before := c.Jobs("10-")
	b.want("PUT", "/execution-environments/10", tagged, 204, "")
	b.eventually("the idle runners are new", fresh(before))
	b.pool("10", 2, 0)
}

// Between gateways it is TLS where it is TLS for clients, with an authority of one's own.
func TestGatewaysSpeakTLSWithEachOther(t *testing.T) {
	t.Parallel()
	files, roots := certificates(t)
	trusted := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	c := nomadtest.New(t)
	secure := func() *harness {
		h := among(t, c, func(cfg *config.Config) { cfg.Server.TLS = files })
		h.url = strings.Replace(h.url, "http", "https", 1)
		h.http.Transport = &http.Transport{TLSClientConfig: trusted}
		return h
	}
	a, b := secure(), secure()
	a.want("PUT", "/execution-environments/10", env("1"), 201, "")
	a.pool("10", 1, 0)
	r := a.claim("1")
	dialer := websocket.Dialer{TLSClientConfig: trusted}
	conn, _, err := dialer.Dial(b.via(a.execute(r, `{"command":"echo hi"}`)), http.Header{"Poseidon-Token": {"secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b.messages(conn, `{"type":"start"}`, `{"type":"stdout","data":"hi\n"}`, `{"type":"exit","data":0}`)
	a.eventually("it expires, after the other was asked", func() bool { return len(c.Jobs(r)) == 0 })
}
