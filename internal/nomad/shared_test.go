package nomad_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/internal/peers"
	"rockpool/internal/runner"
)

func client(t *testing.T, address string) *nomad.Client {
	t.Helper()
	c, err := nomad.New(nomad.Options{Address: address, Namespace: "default"}, logging.Discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// On a cluster without locks a lease is held by whoever renews it, and free once nobody does.
func TestLeasesWithoutLocks(t *testing.T) {
	cluster := nomadtest.New(t)
	cluster.NoLocks()
	const ttl = 300 * time.Millisecond
	first, second := nomad.NewLeases(client(t, cluster.URL), ttl), nomad.NewLeases(client(t, cluster.URL), ttl)
	ctx := t.Context()
	acquire := func(l *nomad.Leases, name string) (peers.Lease, bool) {
		t.Helper()
		got, ok, err := l.Acquire(ctx, name, map[string]string{"a": "b"})
		if err != nil {
			t.Fatal(err)
		}
		return got, ok
	}
	// As a group does: the own name first, which shows that there are no locks.
	acquire(first, "instance/1")
	acquire(second, "instance/2")
	lead, ok := acquire(first, "lead")
	if !ok {
		t.Fatal("a free lease was not given")
	}
	for began := time.Now(); time.Since(began) < 3*ttl; {
		if _, ok := acquire(second, "lead"); ok {
			t.Fatal("one that is renewed was given away")
		}
		if err := lead.Renew(ctx); err != nil {
			t.Fatal(err)
		}
		if names, err := second.Names(ctx); err != nil || !names["lead"].Held {
			t.Fatalf("it is not shown as held: %v %v", names, err)
		}
	}
	var taken peers.Lease
	for began := time.Now(); taken == nil; {
		if got, ok := acquire(second, "lead"); ok {
			if taken = got; time.Since(began) < ttl/2 {
				t.Errorf("it was free after %v", time.Since(began))
			}
		} else if time.Since(began) > 20*ttl {
			t.Fatal("it never became free")
		}
	}
	if err := lead.Renew(ctx); !errors.Is(err, peers.ErrLost) {
		t.Errorf("the one before is told %v", err)
	}
	if err := lead.Release(ctx); err != nil {
		t.Error(err)
	}
	if err := taken.Renew(ctx); err != nil {
		t.Errorf("the release of the one before took it from its holder: %v", err)
	}
	if err := taken.Release(ctx); err != nil {
		t.Error(err)
	}
	if names, err := first.Names(ctx); err != nil || len(names) != 2 {
		t.Errorf("what is left: %v %v", names, err)
	}
}

func TestLeasesWithLocks(t *testing.T) {
	cluster := nomadtest.New(t)
	first, second := nomad.NewLeases(client(t, cluster.URL), peers.TTL), nomad.NewLeases(client(t, cluster.URL), peers.TTL)
	ctx := t.Context()
	lead, ok, err := first.Acquire(ctx, "lead", map[string]string{"url": "http://a"})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, ok, err := second.Acquire(ctx, "lead", map[string]string{"url": "http://b"}); ok || err != nil {
		t.Fatalf("it is held: %v %v", ok, err)
	}
	if items, err := second.Items(ctx, "lead"); err != nil || items["url"] != "http://a" {
		t.Errorf("its items: %v %v", items, err)
	}
	if err := errors.Join(lead.Renew(ctx), lead.Release(ctx)); err != nil {
		t.Error(err)
	}
	if names, err := second.Names(ctx); err != nil || len(names) != 0 {
		t.Errorf("after the release: %v %v", names, err)
	}
	if err := lead.Renew(ctx); !errors.Is(err, peers.ErrLost) {
		t.Errorf("a renewal after the release: %v", err)
	}
	if _, ok, err := second.Acquire(ctx, "lead", map[string]string{"url": "http://b"}); !ok || err != nil {
		t.Errorf("it is free: %v %v", ok, err)
	}
}

// gauge counts the reads of single jobs that are under way, and lets none end before so many are.
type gauge struct {
	next http.Handler
	want int

	mu       sync.Mutex
	now, max int
	full     chan struct{}
}

func (g *gauge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/v1/job/") {
		g.next.ServeHTTP(w, r)
		return
	}
	g.mu.Lock()
	g.now++
	g.max = max(g.max, g.now)
	if g.now == g.want {
		select {
		case <-g.full:
		default:
			close(g.full)
		}
	}
	g.mu.Unlock()
	select {
	case <-g.full:
	case <-r.Context().Done():
	}
	g.next.ServeHTTP(w, r)
	g.mu.Lock()
	g.now--
	g.mu.Unlock()
}

// once takes the first listing and ends the feed.
type once struct {
	cancel context.CancelFunc
	all    []runner.Seen
}

func (o *once) All(list []runner.Seen, _ uint64) { o.all = list; o.cancel() }
func (o *once) Changed(runner.Seen)              {}
func (o *once) Gone(string)                      {}

// A cluster that lists jobs without what is in them is asked for each, many at a time but not all.
func TestReadsOfJobsAreParallelAndBounded(t *testing.T) {
	const atOnce, runners = 16, 100
	cluster := nomadtest.New(t)
	target, err := url.Parse(cluster.URL)
	if err != nil {
		t.Fatal(err)
	}
	g := &gauge{next: httputil.NewSingleHostReverseProxy(target), want: atOnce, full: make(chan struct{})}
	front := httptest.NewServer(g)
	t.Cleanup(front.Close)
	c := client(t, front.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	maker := client(t, cluster.URL)
	makerCtx, made := context.WithCancel(ctx)
	if err := maker.Watch(makerCtx, &once{cancel: made}); err != nil { // parses the template
		t.Fatal(err)
	}
	for i := range runners {
		if _, err := maker.CreateRunner(ctx, environment.Environment{ID: 10, Image: "host"}, fmt.Sprintf("10-%08x-e67d-11f1-bfb5-962598be1b03", i), false); err != nil {
			t.Fatal(err)
		}
	}
	watchCtx, stop := context.WithCancel(ctx)
	f := &once{cancel: stop}
	if err := c.Watch(watchCtx, f); err != nil {
		t.Fatal(err)
	}
	if len(f.all) != runners || g.max != atOnce {
		t.Errorf("%d runners were found with up to %d reads at once", len(f.all), g.max)
	}
}

// definitions are what one gateway hears of the environments.
type definitions struct {
	mu   sync.Mutex
	said []string
}

func (d *definitions) Seen(e environment.Environment, again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, fmt.Sprint("seen ", e.ID, " ", e.PoolSize, " ", again))
}

func (d *definitions) Gone(id environment.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, fmt.Sprint("gone ", id))
}

func (d *definitions) last() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.said) == 0 {
		return ""
	}
	return d.said[len(d.said)-1]
}

// idle follows without an end of its own.
type idle struct{ listed chan struct{} }

func (i idle) All([]runner.Seen, uint64) { close(i.listed) }
func (i idle) Changed(runner.Seen)       {}
func (i idle) Gone(string)               {}

// What one gateway makes of an environment the other hears in order, and the first does not hear of itself.
func TestDefinitionsAreHeardByOthersAlone(t *testing.T) {
	cluster := nomadtest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var heard [2]definitions
	var clients [2]*nomad.Client
	for i := range clients {
		clients[i] = client(t, cluster.URL)
		clients[i].Several(fmt.Sprint(i), &heard[i])
		listed := make(chan struct{})
		wg.Go(func() { _ = clients[i].Watch(ctx, idle{listed}) })
		<-listed
	}
	until := func(want string) {
		t.Helper()
		for began := time.Now(); heard[1].last() != want; {
			if time.Since(began) > 10*time.Second {
				t.Fatalf("heard %q, not %q", heard[1].said, want)
			}
		}
	}
	e := environment.Environment{ID: 10, PoolSize: 3, Image: "host"}
	if err := clients[0].RegisterTemplate(ctx, e); err != nil {
		t.Fatal(err)
	}
	until("seen 10 3 false")
	e.PoolSize = 5
	if err := clients[0].RegisterTemplate(ctx, e); err != nil {
		t.Fatal(err)
	}
	until("seen 10 5 true")
	cluster.NoRoom(true)
	e.PoolSize = 7
	if err := clients[0].RegisterTemplate(ctx, e); err == nil {
		t.Error("what cannot be placed was accepted")
	}
	until("seen 10 5 true") // as it was put back
	cluster.NoRoom(false)
	if err := clients[0].DeleteTemplate(ctx, 10); err != nil {
		t.Fatal(err)
	}
	until("gone 10")
	heard[0].mu.Lock()
	defer heard[0].mu.Unlock()
	for _, s := range heard[0].said {
		if s != "gone 10" {
			t.Errorf("the first heard of its own: %q", heard[0].said)
		}
	}
}
