package peers_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/peers"
)

// store is leases as a cluster keeps them: a lock that was not renewed for its time is free.
type store struct {
	mu     sync.Mutex
	index  uint64
	byName map[string]*entry
}

type entry struct {
	items   map[string]string
	holder  int
	expires time.Time
	index   uint64
}

func (e *entry) held() bool { return time.Now().Before(e.expires) }

// view is one gateway's way to the store.
type view struct {
	*store
	mu  sync.Mutex
	err error // of each call
}

func (v *view) cut(err error) { v.mu.Lock(); v.err = err; v.mu.Unlock() }

func (v *view) broken() error { v.mu.Lock(); defer v.mu.Unlock(); return v.err }

func (v *view) Acquire(_ context.Context, name string, items map[string]string) (peers.Lease, bool, error) {
	if err := v.broken(); err != nil {
		return nil, false, err
	}
	v.store.mu.Lock()
	defer v.store.mu.Unlock()
	if e := v.byName[name]; e != nil && e.held() {
		return nil, false, nil
	}
	v.index++
	v.byName[name] = &entry{items: items, holder: int(v.index), expires: time.Now().Add(peers.TTL), index: v.index}
	return &held{v, name, int(v.index)}, true, nil
}

type held struct {
	v    *view
	name string
	id   int
}

func (h *held) Renew(context.Context) error {
	if err := h.v.broken(); err != nil {
		return err
	}
	h.v.store.mu.Lock()
	defer h.v.store.mu.Unlock()
	e := h.v.byName[h.name]
	if e == nil || e.holder != h.id || !e.held() {
		return peers.ErrLost
	}
	e.expires = time.Now().Add(peers.TTL)
	return nil
}

func (h *held) Release(context.Context) error {
	if err := h.v.broken(); err != nil {
		return err
	}
	h.v.store.mu.Lock()
	defer h.v.store.mu.Unlock()
	if e := h.v.byName[h.name]; e != nil && e.holder == h.id {
		delete(h.v.byName, h.name)
	}
	return nil
}

func (v *view) Names(context.Context) (map[string]peers.Entry, error) {
	if err := v.broken(); err != nil {
		return nil, err
	}
	v.store.mu.Lock()
	defer v.store.mu.Unlock()
	all := map[string]peers.Entry{}
	for name, e := range v.byName {
		all[name] = peers.Entry{Held: e.held(), Index: e.index}
	}
	return all, nil
}

func (v *view) Items(_ context.Context, name string) (map[string]string, error) {
	if err := v.broken(); err != nil {
		return nil, err
	}
	v.store.mu.Lock()
	defer v.store.mu.Unlock()
	if e := v.byName[name]; e != nil {
		return e.items, nil
	}
	return nil, nil
}

func (v *view) Remove(_ context.Context, name string, index uint64) error {
	v.store.mu.Lock()
	defer v.store.mu.Unlock()
	if e := v.byName[name]; e != nil && e.index == index && !e.held() {
		delete(v.byName, name)
	}
	return nil
}

// member is a gateway of a group, with what it takes to end it.
type member struct {
	*peers.Group
	v    *view
	stop context.CancelFunc
	done chan error
}

func (s *store) join(t *testing.T, url string, rt http.RoundTripper) *member {
	v := &view{store: s}
	m := &member{Group: peers.NewGroup(peers.Options{URL: url, Key: []byte("key"), Client: rt}, v, logging.Discard()), v: v, done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	m.stop = cancel
	go func() { m.done <- m.Run(ctx) }()
	return m
}

// die ends a gateway without a word, as kill -9 does.
func (m *member) die() {
	m.v.cut(errors.New("dead"))
	m.stop()
	<-m.done
}

func (m *member) leave() { m.stop(); <-m.done }

func newStore() *store { return &store{byName: map[string]*entry{}} }

func settle(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestTheLeadGoesOver(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(*member)
		within time.Duration
	}{
		"when its holder leaves": {(*member).leave, 2 * time.Second},
		"when its holder dies":   {(*member).die, peers.TTL + 2*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				a := s.join(t, "http://a", nil)
				settle(time.Second)
				b := s.join(t, "http://b", nil)
				settle(2 * time.Second)
				if !a.Leading() || b.Leading() || !b.Alive(a.Self()) || !a.Alive(b.Self()) {
					t.Fatal("the first does not lead, or they do not know each other")
				}
				c.end(a)
				began := time.Now()
				for !b.Leading() {
					if time.Since(began) > c.within {
						t.Fatal("nobody took over")
					}
					settle(100 * time.Millisecond)
				}
				settle(2 * time.Second)
				if b.Alive(a.Self()) {
					t.Error("the one that ended still lives")
				}
				settle(2 * time.Minute)
				if names, _ := b.v.Names(t.Context()); len(names) != 2 {
					t.Errorf("the leases are %v", names)
				}
				b.leave()
				if names, _ := b.v.Names(t.Context()); len(names) != 0 {
					t.Errorf("afterwards the leases are %v", names)
				}
			})
		})
	}
}

// Whatever is cut and healed, two never lead at a time, and one leads once all is well.
func TestNeverTwoLead(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := newStore()
			var all []*member
			for i := range 3 {
				all = append(all, s.join(t, fmt.Sprint("http://", i), nil))
			}
			leads := func() (n int) {
				for _, m := range all {
					if m.Leading() {
						n++
					}
				}
				return n
			}
			for range 400 {
				if m := all[r.IntN(len(all))]; r.IntN(4) == 0 {
					m.v.cut(fault.New(fault.Unavailable, "cut"))
				} else {
					m.v.cut(nil)
				}
				settle(time.Duration(r.IntN(1500)) * time.Millisecond)
				if n := leads(); n > 1 {
					t.Fatalf("seed %d: %d lead", seed, n)
				}
			}
			for _, m := range all {
				m.v.cut(nil)
			}
			settle(peers.TTL + 3*time.Second)
			if n := leads(); n != 1 {
				t.Errorf("seed %d: in the end %d lead", seed, n)
			}
			for _, m := range all {
				m.leave()
			}
		})
	}
}

// A lead that ran out while the cluster did not answer is told as lost, so that who leads again looks at everything anew.
func TestALeadThatRanOutIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		v := &view{store: s}
		g := peers.NewGroup(peers.Options{URL: "http://a", Key: []byte("key")}, v, logging.Discard())
		var mu sync.Mutex
		var told []bool
		g.OnChange(func() {
			mu.Lock()
			defer mu.Unlock()
			if leads, since, _ := g.Lead(); leads && time.Since(since) > time.Second {
				t.Errorf("it says that it has led for %v", time.Since(since))
			}
			if leads := g.Leading(); len(told) == 0 || told[len(told)-1] != leads {
				told = append(told, leads)
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		settle(time.Second)
		v.cut(fault.New(fault.Unavailable, "cut"))
		settle(time.Minute)
		v.cut(nil)
		settle(5 * time.Second)
		stop()
		<-done
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(told) != "[true false true]" {
			t.Errorf("told: %v", told)
		}
	})
}

func TestAClusterThatRefusesIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &view{store: newStore(), err: fault.New(fault.Forbidden, "Permission denied")}
		g := peers.NewGroup(peers.Options{URL: "http://a"}, v, logging.Discard())
		if err := g.Run(t.Context()); !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "rockpool/gateways/") {
			t.Errorf("got %v", err)
		}
	})
}

// runners are known with the time since their last use.
type runners struct {
	mu      sync.Mutex
	idle    map[string]time.Duration
	expired []string
}

func (r *runners) Idle(id string) (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.idle[id]
	return d, ok
}

func (r *runners) Expired(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expired = append(r.expired, id)
}

// late is a handler that is known only after its server has an address.
type late struct{ h http.Handler }

func (l *late) ServeHTTP(w http.ResponseWriter, r *http.Request) { l.h.ServeHTTP(w, r) }

func TestWhatTheOthersKnowOfARunner(t *testing.T) {
	s := newStore()
	var members []*member
	var known []*runners
	var servers []*httptest.Server
	for range 3 {
		l := &late{}
		server := httptest.NewServer(l)
		defer server.Close()
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		m := s.join(t, server.URL, transport)
		r := &runners{idle: map[string]time.Duration{}}
		l.h = m.Handler(r, logging.Discard())
		<-m.Joined()
		members, known, servers = append(members, m), append(known, r), append(servers, server)
	}
	a := members[0]
	if idle, err := a.Idle(t.Context(), "10-x"); err != nil || idle >= 0 {
		t.Errorf("nobody knows it: %v %v", idle, err)
	}
	known[0].idle["10-x"] = 0 // what it knows itself is not asked for
	known[1].idle["10-x"] = time.Hour
	known[2].idle["10-x"] = time.Minute
	if idle, err := a.Idle(t.Context(), "10-x"); err != nil || idle != time.Minute {
		t.Errorf("got %v %v", idle, err)
	}
	a.Expire(t.Context(), "10-x")
	if len(known[0].expired) != 0 || len(known[1].expired) != 1 || len(known[2].expired) != 1 {
		t.Errorf("told: %v %v %v", known[0].expired, known[1].expired, known[2].expired)
	}
	// Executions are found by their ids.
	for i, m := range members {
		p, ok, err := a.Owner(t.Context(), m.NewExecutionID())
		if err != nil || ok != (i > 0) || (ok && p.URL != servers[i].URL) {
			t.Errorf("of member %d: %v %v %v", i, p, ok, err)
		}
	}
	for _, id := range []string{"", "x", "00000000-0000-4000-8000-000000000000"} {
		if _, ok, err := a.Owner(t.Context(), id); ok || err != nil {
			t.Errorf("%q: %v %v", id, ok, err)
		}
	}
	// One that lives and does not answer, or answers as something else would, is no news.
	servers[2].Config.Handler = http.NotFoundHandler()
	if idle, err := a.Idle(t.Context(), "10-x"); err == nil || idle != time.Hour {
		t.Errorf("without the third: %v %v", idle, err)
	}
	// What one that has left knew is gone: it may have been used until then.
	members[2].leave()
	if idle, err := a.Idle(t.Context(), "10-x"); err != nil || idle < 0 || idle > time.Minute {
		t.Errorf("after the third has left: %v %v", idle, err)
	}
	for _, m := range members[:2] {
		m.leave()
	}
}

// Nobody who shows no secret may hold a connection by a body that never comes.
func TestABodyIsNotWaitedFor(t *testing.T) {
	g := peers.NewGroup(peers.Options{URL: "http://127.0.0.1"}, nil, logging.Discard())
	server := httptest.NewServer(g.Handler(&runners{}, logging.Discard()))
	defer server.Close()
	for _, body := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
		for _, path := range []string{"runners/10-x", "nothing"} {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := fmt.Fprintf(conn, "DELETE %s%s HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", peers.Prefix, path, body); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "Connection: close") {
				t.Errorf("%s, %s: %q, %v", path, body, answer, err)
			}
		}
	}
}

// The word of a gateway is good for one request to one other, for a short time.
func TestAWordIsGoodForOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group := func(key string) *peers.Group {
			return peers.NewGroup(peers.Options{URL: "http://a", Key: []byte(key)}, nil, logging.Discard())
		}
		a, b, stranger := group("key"), group("key"), group("other")
		request := func(method, path string) *http.Request { return httptest.NewRequest(method, "http://b"+path, nil) }
		to := peers.Peer{ID: b.Self(), URL: "http://b"}
		word := a.Vouch(to, request("GET", "/x?executionID=1"), "codeocean")
		if about, err := b.Vouched(request("GET", "/x?executionID=1"), word); err != nil || about != "codeocean" {
			t.Fatalf("got %q, %v", about, err)
		}
		parts := strings.Split(word, ".")
		other := strings.Split(a.Vouch(to, request("GET", "/x?executionID=1"), "operator"), ".")
		for name, c := range map[string]struct {
			at   *peers.Group
			r    *http.Request
			word string
		}{
			"none":               {b, request("GET", "/x?executionID=1"), ""},
			"nonsense":           {b, request("GET", "/x?executionID=1"), "a.b.c.d"},
			"another gateway":    {a, request("GET", "/x?executionID=1"), word},
			"another path":       {b, request("GET", "/y?executionID=1"), word},
			"another execution":  {b, request("GET", "/x?executionID=2"), word},
			"another method":     {b, request("DELETE", "/x?executionID=1"), word},
			"another token":      {b, request("GET", "/x?executionID=1"), parts[0] + "." + other[1] + "." + parts[2]},
			"another time":       {b, request("GET", "/x?executionID=1"), "1" + word},
			"who has no key":     {b, request("GET", "/x?executionID=1"), stranger.Vouch(to, request("GET", "/x?executionID=1"), "codeocean")},
			"to who has no key":  {stranger, request("GET", "/x?executionID=1"), a.Vouch(peers.Peer{ID: stranger.Self()}, request("GET", "/x?executionID=1"), "codeocean")},
			"parts moved":        {b, request("GET", "/x?executionID=1"), parts[0] + "." + parts[1] + parts[2] + "."},
			"without its length": {b, request("GET", "/x?executionID=1"), parts[1] + "." + parts[2]},
		} {
			if about, err := c.at.Vouched(c.r, c.word); err == nil {
				t.Errorf("%s: it was taken, about %q", name, about)
			}
		}
		time.Sleep(3 * time.Minute)
		if _, err := b.Vouched(request("GET", "/x?executionID=1"), word); err == nil || !strings.Contains(err.Error(), "clocks") {
			t.Errorf("an old word: %v", err)
		}
	})
}

// One that has come since the last look is not taken for dead by those who ask.
func TestOneThatHasComeAMomentAgoLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		a := s.join(t, "http://a", nil)
		<-a.Joined()
		b := s.join(t, "http://b", nil)
		<-b.Joined()
		if a.Alive(b.Self()) {
			t.Fatal("it is known already")
		}
		if lives, err := a.Lives(t.Context(), b.Self()); !lives || err != nil {
			t.Errorf("it lives: %v, %v", lives, err)
		}
		for _, id := range []string{"", "x", "00000000-0000-4000-8000-000000000000"} {
			if lives, err := a.Lives(t.Context(), id); lives || err != nil {
				t.Errorf("%q lives: %v, %v", id, lives, err)
			}
		}
		a.v.cut(fault.New(fault.Unavailable, "cut"))
		if lives, err := a.Lives(t.Context(), "00000000-0000-4000-8000-000000000000"); lives || err == nil {
			t.Errorf("nobody can know: %v, %v", lives, err)
		}
		a.v.cut(nil)
		a.leave()
		b.leave()
	})
}

// One that does not prove to be a gateway lives, so that nothing is taken from it, and is not asked. What it may know keeps runners alive for their time.
func TestWhoProvesNothingIsNotAsked(t *testing.T) {
	s := newStore()
	a := s.join(t, "http://127.0.0.1:1", nil)
	<-a.Joined()
	asked := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer asked.Close()
	const id = "0c9f8fd2-c5ff-41f0-8de9-0242ac120002"
	if _, ok, err := a.v.Acquire(t.Context(), "instance/"+id, map[string]string{"url": asked.URL, "proof": "x", "secret": "x"}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if idle, err := a.Idle(t.Context(), "10-x"); err == nil || idle >= 0 || !strings.Contains(err.Error(), "not proved") {
		t.Errorf("got %v, %v", idle, err)
	}
	a.Expire(t.Context(), "10-x")
	if p, ok, err := a.Owner(t.Context(), id); ok || err != nil {
		t.Errorf("it owns an execution: %v %v", p, err)
	}
	if !a.Alive(id) {
		t.Error("its runners would be taken from it")
	}
	a.leave()
}
