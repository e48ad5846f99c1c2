package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/membership"
	"rockpool/internal/orchestrator/peer"
	"rockpool/internal/orchestrator/state"
)

// follower is the consensus of a server that does not lead.
type follower struct {
	leader  atomic.Value // string; "" = none
	changed chan struct{}
	answer  func(*http.Request) (*http.Response, error)
	sent    atomic.Int32
	peers   []consensus.Peer
}

func (f *follower) Apply(context.Context, any) (any, uint64, error) {
	return nil, 0, errors.New("a follower applies nothing")
}
func (f *follower) Leader() (bool, string)     { return false, f.LeaderAddress() }
func (f *follower) Stats() map[string]string   { return nil }
func (f *follower) Changed() <-chan struct{}   { return f.changed }
func (f *follower) LeaderAddress() string      { s, _ := f.leader.Load().(string); return s }
func (f *follower) LastContact() time.Duration { return 30 * time.Millisecond }
func (f *follower) CaughtUp() bool             { return true }
func (f *follower) Verify(context.Context) error {
	return errors.New("a follower is no leader")
}
func (f *follower) Peers() ([]consensus.Peer, uint64, error)         { return f.peers, 0, nil }
func (f *follower) Remove(context.Context, string) error             { return nil }
func (f *follower) Transfer(context.Context, string) error           { return nil }
func (f *follower) Save(context.Context) (*consensus.Archive, error) { return nil, nil }
func (f *follower) Restore(context.Context, io.Reader, int64, func(io.Reader) error) error {
	return nil
}
func (f *follower) Members() *membership.Membership          { return nil }
func (f *follower) Address() string                          { return "self:1" }
func (f *follower) Health() (consensus.ClusterHealth, error) { return consensus.ClusterHealth{}, nil }
func (f *follower) Transport() http.RoundTripper             { return f }
func (f *follower) RoundTrip(r *http.Request) (*http.Response, error) {
	f.sent.Add(1)
	return f.answer(r)
}

func newFollower(leads string, answer func(*http.Request) (*http.Response, error)) (*follower, *httpapi.API) {
	f := &follower{changed: make(chan struct{}), answer: answer}
	f.leader.Store(leads)
	store := state.New()
	return f, httpapi.New(httpapi.Config{
		Store: store, Log: f, Cluster: f, Leader: leader.New(leader.Config{Store: store}), Events: events.New(events.DefaultLimits, 0),
	})
}

func response(status int, body string, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

func TestWhatIsSentToTheLeader(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	unreached := func(n int, then func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			if n--; n >= 0 {
				return nil, peer.ErrUnreached
			}
			return then(r)
		}
	}
	echo := func(r *http.Request) (*http.Response, error) {
		var b []byte
		if r.Body != nil {
			var err error
			if b, err = io.ReadAll(r.Body); err != nil {
				return nil, err
			}
		}
		return response(200, r.Method+" "+r.URL.Host+" "+string(b)), nil
	}
	busy := func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return nil, errors.New("connection reset by peer")
	}
	resetFirst := func(then func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
		n := 0
		return func(r *http.Request) (*http.Response, error) {
			if n++; n == 1 {
				return nil, errors.New("connection reset by peer")
			}
			return then(r)
		}
	}
	for _, c := range []struct {
		name, method, path, body string
		answer                   func(*http.Request) (*http.Response, error)
		status                   int
		want                     string
		sent                     int32
	}{
		{"a write", "PUT", "/v1/jobs", "{}", echo, 200, "PUT lead:1 {}", 1},
		{"a large write", "PUT", "/v1/jobs", large, echo, 200, "PUT lead:1 " + large, 1},
		{"a read", "GET", "/v1/jobs", "", echo, 200, "GET lead:1 ", 1},
		{"a read that may be stale stays here", "GET", "/v1/jobs?stale", "", nil, 200, "[]", 0},
		{"what is about the server stays here", "GET", "/v1/agent/self", "", nil, 200, "config", 0},
		{"an unreached leader is tried again", "PUT", "/v1/jobs", "{}", unreached(3, echo), 200, "PUT lead:1 {}", 4},
		{"a large write to an unreached leader too", "PUT", "/v1/jobs", large, unreached(2, echo), 200, "PUT lead:1 " + large, 3},
		{"a write whose answer was lost is not", "PUT", "/v1/jobs", "{}", busy, 504, "not known whether", 1},
		{"nor a large one", "PUT", "/v1/jobs", large, busy, 504, "not known whether", 1},
		{"a deletion neither", "DELETE", "/v1/job/x", "", busy, 504, "not known whether", 1},
		{"a read is, for it changes nothing", "GET", "/v1/jobs", "", resetFirst(echo), 200, "GET", 2},
		{"the leader's refusal is the answer", "PUT", "/v1/jobs", "{}",
			func(*http.Request) (*http.Response, error) { return response(403, "Permission denied"), nil }, 403, "Permission denied", 1},
		{"a body that no row takes", "PUT", "/v1/jobs", strings.Repeat("x", 5<<20), nil, 413, "larger", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, h := newFollower("lead:1", c.answer)
				r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
					t.Errorf("answered %d %.80q, want %d %.80q", w.Code, w.Body, c.status, c.want)
				}
				if n := f.sent.Load(); n != c.sent {
					t.Errorf("it was sent %d times, want %d", n, c.sent)
				}
			})
		})
	}
}

func TestARequestIsHeldWhileThereIsNoLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, h := newFollower("", func(*http.Request) (*http.Response, error) { return response(200, "served"), nil })
		start := time.Now()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("PUT", "/v1/jobs", strings.NewReader("{}")))
		if w.Code != 500 || w.Body.String() != "No cluster leader" || time.Since(start) != 5*time.Second || w.Header().Get("X-Nomad-KnownLeader") != "false" {
			t.Errorf("answered %d %q after %v", w.Code, w.Body, time.Since(start))
		}
		old := f.changed
		time.AfterFunc(2*time.Second, func() {
			f.leader.Store("new:1")
			close(old)
		})
		start = time.Now()
		w = httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("PUT", "/v1/jobs", strings.NewReader("{}")))
		if w.Body.String() != "served" || time.Since(start) != 2*time.Second {
			t.Errorf("answered %q after %v", w.Body, time.Since(start))
		}
		// A caller that leaves does not stay behind.
		f.leader.Store("")
		f.changed = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/v1/jobs", strings.NewReader("{}")).WithContext(ctx))
		if time.Since(start) != time.Second {
			t.Errorf("it was held for %v after its caller had left", time.Since(start))
		}
	})
}

func TestARequestIsForwardedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The first answers that it has not looked at it, the second serves it.
		asked := 0
		f, h := newFollower("lead:1", func(r *http.Request) (*http.Response, error) {
			if asked++; asked == 1 {
				return response(500, "No cluster leader", "X-Rockpool-Not-Served", "true"), nil
			}
			b, _ := io.ReadAll(r.Body)
			return response(200, string(b)), nil
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("PUT", "/v1/jobs", strings.NewReader("body")))
		if w.Body.String() != "body" || f.sent.Load() != 2 {
			t.Errorf("answered %q after %d attempts", w.Body, f.sent.Load())
		}
		// One that comes from another server goes no further.
		w = httptest.NewRecorder()
		httpapi.Forwarded(h).ServeHTTP(w, httptest.NewRequest("PUT", "/v1/jobs", strings.NewReader("body")))
		if w.Code != 500 || w.Header().Get("X-Rockpool-Not-Served") == "" || f.sent.Load() != 2 {
			t.Errorf("answered %d after %d attempts", w.Code, f.sent.Load())
		}
		// No header makes a stranger's request one that another server has sent.
		r := httptest.NewRequest("PUT", "/v1/jobs", bytes.NewReader([]byte("body")))
		for _, name := range []string{"X-Rockpool-Forwarded", "X-Rockpool-Not-Served", "X-Rockpool-Hop", "X-Nomad-Forwarded", "X-Forwarded-For"} {
			r.Header.Set(name, "true")
		}
		w = httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Body.String() != "body" || f.sent.Load() != 3 {
			t.Errorf("a forged header: answered %d %q after %d attempts", w.Code, w.Body, f.sent.Load())
		}
	})
}

func TestAStaleAnswerSaysHowOldItIs(t *testing.T) {
	_, h := newFollower("lead:1", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/v1/jobs?stale", nil))
	if w.Header().Get("X-Nomad-LastContact") != "30" || w.Header().Get("X-Nomad-KnownLeader") != "true" {
		t.Errorf("headers: %v", w.Header())
	}
}

// A request for a node goes to the server that has its connection, whichever that is, and is served once.
func TestANodeIsSoughtAmongTheServers(t *testing.T) {
	const path = "/v1/client/stats?node_id=11111111-2222-3333-4444-555555555555"
	for name, c := range map[string]struct {
		holder string // "" = none of them has a connection
		lead   string
		asked  string
		code   int
	}{
		"the leader has it":             {"lead:1", "lead:1", "lead:1", 200},
		"another has it":                {"other:1", "lead:1", "lead:1 down:1 other:1", 200},
		"nobody has it":                 {"", "lead:1", "lead:1 down:1 other:1", 404},
		"there is no leader":            {"other:1", "", "down:1 other:1", 200},
		"this server has come to lead":  {"other:1", "self:1", "down:1 other:1", 200},
		"it is asked once, and no more": {"down:1", "lead:1", "lead:1 down:1 other:1", 404},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			f, h := newFollower(c.lead, func(r *http.Request) (*http.Response, error) {
				asked = append(asked, r.URL.Host)
				switch {
				case r.URL.Host == "down:1":
					return nil, peer.ErrUnreached
				case r.URL.Host == c.holder:
					return response(200, "{}"), nil
				}
				return response(404, "No path to node", "X-Rockpool-Not-Served", "true"), nil
			})
			f.peers = []consensus.Peer{{Address: "self:1"}, {Address: "down:1"}, {Address: "other:1"}}
			if c.lead == "lead:1" {
				f.peers = append(f.peers, consensus.Peer{Address: "lead:1"})
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if w.Code != c.code || strings.Join(asked, " ") != c.asked {
				t.Errorf("%d %q, asked %q", w.Code, w.Body, asked)
			}
			asked = nil
			w = httptest.NewRecorder()
			httpapi.Forwarded(h).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if w.Code != 404 || w.Header().Get("X-Rockpool-Not-Served") == "" || len(asked) != 0 {
				t.Errorf("what another server has sent goes on: %d, asked %q", w.Code, asked)
			}
		})
	}
}

// A node registers anew where it is not known. A server that may be behind does not say so.
func TestOnlyTheLeaderSaysThatANodeIsNotKnown(t *testing.T) {
	_, h := newFollower("lead:1", nil)
	for _, what := range []string{"watch", "connection"} {
		r := httptest.NewRequest("GET", "/v1/internal/node/11111111-2222-3333-4444-555555555555/"+what, nil)
		r.Header.Set("X-Rockpool-Node-Secret", "99999999-2222-3333-4444-555555555555")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < 500 || !strings.Contains(w.Body.String(), "not heard of the node yet") {
			t.Errorf("%s: %d %q", what, w.Code, w.Body)
		}
	}
}
