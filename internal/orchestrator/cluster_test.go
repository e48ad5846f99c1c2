package orchestrator_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"go.uber.org/goleak"

	"rockpool/internal/certs"
	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/model"
	nodeagent "rockpool/internal/orchestrator/node"
)

// pki is an authority and the files of its servers and nodes.
type pki struct {
	ca  certs.Pair
	dir string
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	ca, err := certs.CreateCA("", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &pki{ca, t.TempDir()}
}

func (p *pki) files(t *testing.T, role certs.Role) certs.Files {
	t.Helper()
	c, err := certs.Create(p.ca, certs.Request{Role: role}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(p.dir, string(role))
	if err != nil {
		t.Fatal(err)
	}
	f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, data := range map[string][]byte{f.CA: p.ca.Cert, f.Cert: c.Cert, f.Key: c.Key} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// fellow is one server of a cluster in this process.
type fellow struct {
	cfg    orchestrator.ServerConfig
	server *orchestrator.Server
	http   *httptest.Server
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// freePorts finds ports that are free for TCP and UDP.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

var gossipKey = bytes.Repeat([]byte{7}, 32)

func (p *pki) server(t *testing.T, name string, expect int, join ...string) *fellow {
	t.Helper()
	store, err := certs.Load(p.files(t, certs.Server), "", true)
	if err != nil {
		t.Fatal(err)
	}
	c := &fellow{cfg: orchestrator.ServerConfig{
		DataDir: t.TempDir(), Name: name, Token: "root", Keep: leader.Keep{}, LogSegment: 1 << 20,
		Cluster: orchestrator.ClusterConfig{
			Expect: expect, RPCAddress: freePort(t), GossipAddress: freePort(t), Join: join, GossipKey: gossipKey,
			Certs:          store,
			GossipInterval: 100 * time.Millisecond, AutopilotInterval: 50 * time.Millisecond,
		},
	}}
	return c
}

func (c *fellow) start(t *testing.T) {
	t.Helper()
	s, err := orchestrator.NewServer(c.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.server, c.cancel = s, cancel
	c.http = httptest.NewUnstartedServer(s.Handler())
	if c.cfg.Address != "" { // that others are told
		l, err := net.Listen("tcp", c.cfg.Address)
		if err != nil {
			t.Fatal(err)
		}
		c.http.Listener.Close()
		c.http.Listener = l
	}
	c.http.Start()
	c.wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("%s: %v", c.cfg.Name, err)
		}
	})
}

func (c *fellow) stop() {
	if c.cancel != nil {
		c.cancel()
		c.wg.Wait()
		c.http.CloseClientConnections()
		c.http.Close()
		c.cancel = nil
	}
}

func (c *fellow) client(t *testing.T) *api.Client {
	t.Helper()
	n, err := api.NewClient(&api.Config{Address: c.http.URL, SecretID: "root"})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// until waits for something that other goroutines bring about.
func until(t *testing.T, what string, f func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !f() {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

// retried makes a call that may meet an election, which a busy machine has now and then. The call must be one that may be made twice.
func retried(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for range 5 {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func leads(c *fellow) bool {
	if c.cancel == nil {
		return false
	}
	l, _ := c.server.Raft().Leader()
	return l
}

func leaderOf(t *testing.T, all []*fellow) *fellow {
	t.Helper()
	var l *fellow
	until(t, "a leader", func() bool {
		i := slices.IndexFunc(all, leads)
		if i >= 0 {
			l = all[i]
		}
		return i >= 0
	})
	return l
}

func sameState(t *testing.T, all []*fellow) {
	t.Helper()
	until(t, "equal states", func() bool {
		first, at, err := all[0].server.Hash()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all[1:] {
			h, i, err := c.server.Hash()
			if err != nil {
				t.Fatal(err)
			}
			if i != at || h != first {
				return false
			}
		}
		return true
	})
}

func clusterJob(id string) *api.Job {
	j := api.NewBatchJob(id, id, "global", 50)
	j.Datacenters = []string{"*"}
	g := api.NewTaskGroup("g", 1)
	g.AddTask(api.NewTask("t", "mock"))
	return j.AddTaskGroup(g)
}

// connections are a node's own, to servers where the test has them listen.
type connections struct {
	*nodeagent.Remote
	to []*fellow
}

func (c connections) Servers() (addrs []string, changed <-chan struct{}) {
	for _, s := range c.to {
		addrs = append(addrs, s.http.URL)
	}
	return addrs, nil
}

func TestThreeServers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"))
	p := newPKI(t)
	a := p.server(t, "a", 3)
	b := p.server(t, "b", 3, a.cfg.Cluster.GossipAddress)
	c := p.server(t, "c", 3, a.cfg.Cluster.GossipAddress)
	all := []*fellow{a, b, c}
	for _, s := range all {
		defer s.stop()
	}
	began := time.Now()
	a.start(t)
	b.start(t)
	if l, id := a.server.Raft().Leader(); l || id != "" {
		t.Error("two of three servers have a leader")
	}
	c.start(t)
	first := leaderOf(t, all)
	until(t, "all are ready", func() bool {
		return !slices.ContainsFunc(all, func(s *fellow) bool {
			select {
			case <-s.server.Ready():
				return false
			default:
				return true
			}
		})
	})
	t.Logf("a cluster after %v", time.Since(began))

	// Any server takes writes and gives fresh reads.
	for i, s := range all {
		id := fmt.Sprintf("job-%d", i)
		retried(t, s.cfg.Name+": register", func() error {
			_, _, err := s.client(t).Jobs().Register(clusterJob(id), nil)
			return err
		})
		for _, o := range all {
			retried(t, o.cfg.Name+": read what "+s.cfg.Name+" was told", func() error {
				_, meta, err := o.client(t).Jobs().Info(id, nil)
				if err != nil && strings.Contains(err.Error(), "404") {
					t.Fatalf("%s does not know what %s was told: %v", o.cfg.Name, s.cfg.Name, err)
				}
				if err == nil && !meta.KnownLeader {
					t.Error("the leader that answered is not known")
				}
				return err
			})
		}
	}
	members, err := b.client(t).Agent().Members()
	if err != nil || len(members.Members) != 3 {
		t.Fatalf("members: %v, %v", members, err)
	}
	var conf *api.RaftConfiguration
	retried(t, "Raft's configuration", func() (err error) {
		conf, err = c.client(t).Operator().RaftGetConfiguration(nil)
		if err == nil && (len(conf.Servers) != 3 || !strings.HasSuffix(conf.Servers[0].Node, ".global")) {
			t.Fatalf("Raft's configuration: %+v", conf)
		}
		return err
	})
	until(t, "all name the one that leads", func() bool { // which a busy machine may have changed
		first = leaderOf(t, all)
		addr, err := c.client(t).Status().Leader()
		return err == nil && addr == first.cfg.Cluster.RPCAddress
	})
	if peers, err := c.client(t).Status().Peers(); err != nil || len(peers) != 3 {
		t.Errorf("peers: %v, %v", peers, err)
	}
	if servers, err := c.client(t).Agent().Servers(); err != nil || len(servers) != 3 {
		t.Errorf("servers: %v, %v", servers, err)
	}
	until(t, "health", func() bool {
		h, _, err := c.client(t).Operator().AutopilotServerHealth(nil)
		return err == nil && h.Healthy && h.FailureTolerance == 1 && len(h.Voters) == 3
	})

	// A node holds a connection to each server, so that each of them reaches it.
	n := &model.Node{ID: ident.New(), SecretID: ident.New(), Name: "n", Datacenter: "dc1"}
	remote, err := nodeagent.NewRemote([]string{first.http.URL}, nodeagent.Identity{ID: n.ID, Secret: n.SecretID}, "root", &http.Client{Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	retried(t, "register a node", func() error {
		_, err := remote.Register(t.Context(), n)
		return err
	})
	reachable, leave := context.WithCancel(t.Context())
	var kept sync.WaitGroup
	kept.Go(func() {
		_ = link.Keep(reachable, connections{remote, all}, http.NotFoundHandler(), logging.Discard())
	})
	defer kept.Wait()
	defer leave()
	for _, s := range all {
		until(t, s.cfg.Name+" reaches the node", func() bool { _, err := s.server.Nodes().To(n.ID); return err == nil })
	}
	leave()

	// What the first program did not know is proposed, since all servers here know it; and a follower passes on more than it would keep.
	follower := all[slices.IndexFunc(all, func(s *fellow) bool { return s != first })]
	pilot := &api.AutopilotConfiguration{CleanupDeadServers: true, LastContactThreshold: time.Second, MaxTrailingLogs: 250, ServerStabilizationTime: 100 * time.Millisecond}
	retried(t, "configure autopilot", func() error {
		_, err := follower.client(t).Operator().AutopilotSetConfiguration(pilot, nil)
		return err
	})
	events, err := follower.client(t).EventStream().Stream(t.Context(), map[api.Topic][]string{api.TopicJob: {"large"}}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	large := clusterJob("large")
	large.Meta = map[string]string{"large": strings.Repeat("x", 300<<10)}
	retried(t, "a large job by way of a follower", func() error {
		_, _, err := follower.client(t).Jobs().Register(large, nil)
		return err
	})
	for e := range events {
		if e.Err != nil {
			t.Fatal(e.Err)
		}
		if len(e.Events) > 0 {
			break
		}
	}

	// The leader dies: whoever holds a request until there is another one loses nothing.
	var archive bytes.Buffer
	retried(t, "save a snapshot", func() error {
		snap, err := b.client(t).Operator().Snapshot(nil)
		if err != nil {
			return err
		}
		defer snap.Close()
		archive.Reset()
		_, err = io.Copy(&archive, snap)
		return err
	})

	dead, left := first, slices.DeleteFunc(slices.Clone(all), func(s *fellow) bool { return s == first })
	dead.cut(t)
	killed := time.Now()
	var took time.Duration
	for i := 0; took == 0; i++ {
		_, _, err := left[0].client(t).Jobs().Register(clusterJob(fmt.Sprintf("after-%d", i)), nil)
		switch {
		case err == nil:
			took = time.Since(killed)
		case time.Since(killed) > 15*time.Second:
			t.Fatalf("no write is accepted: %v", err)
		}
	}
	t.Logf("writes accepted again %v after the leader's death", took)
	if took > 2*time.Second {
		t.Errorf("it took %v, want less than 2 s", took)
	}
	dead.stop()
	until(t, "the death is noticed", func() bool {
		_, _, err := left[1].client(t).Operator().AutopilotServerHealth(nil)
		return err != nil && strings.Contains(err.Error(), "429")
	})

	voting := func(s *fellow) (n int) {
		conf, err := s.client(t).Operator().RaftGetConfiguration(nil)
		if err != nil {
			return 0
		}
		for _, p := range conf.Servers {
			if p.Voter {
				n++
			}
		}
		return n
	}
	until(t, "the dead one is taken out", func() bool { return voting(left[0]) == 2 })

	// It comes back with what it had, catches up, and gets its vote again.
	dead.start(t)
	leaderOf(t, all)
	sameState(t, all)
	until(t, "it votes again", func() bool { return voting(left[0]) == 3 })

	// Leadership is handed on.
	now := leaderOf(t, all)
	next := all[slices.IndexFunc(all, func(s *fellow) bool { return s != now })]
	retried(t, "transfer leadership", func() error { return transfer(t, now, next) })
	until(t, "the other one leads", func() bool { return leads(next) })

	// A restore takes everybody back.
	retried(t, "restore", func() error {
		_, err := now.client(t).Operator().SnapshotRestore(bytes.NewReader(archive.Bytes()), nil)
		return err
	})
	until(t, "the state of before", func() bool {
		for _, s := range all {
			if _, _, err := s.client(t).Jobs().Info("job-0", nil); err != nil {
				return false
			}
			if _, _, err := s.client(t).Jobs().Info("after-0", nil); err == nil {
				return false
			}
		}
		return true
	})
	retried(t, "register after a restore", func() error {
		_, _, err := now.client(t).Jobs().Register(clusterJob("later"), nil)
		return err
	})
	sameState(t, all)

	// A server is taken out for good.
	gone := all[slices.IndexFunc(all, func(s *fellow) bool { return !leads(s) })]
	var id string
	for _, s := range conf.Servers {
		if s.Address == gone.cfg.Cluster.RPCAddress {
			id = s.ID
		}
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(s *fellow) bool { return s == gone })
	gone.stop()
	until(t, "it is removed", func() bool {
		if err := rest[0].client(t).Operator().RaftRemovePeerByID(id, nil); err != nil && !strings.Contains(err.Error(), "not found") {
			return false
		}
		conf, err := rest[1].client(t).Operator().RaftGetConfiguration(nil)
		return err == nil && len(conf.Servers) == 2
	})
}

func transfer(t *testing.T, at, to *fellow) error {
	t.Helper()
	conf, err := at.client(t).Operator().RaftGetConfiguration(nil)
	if err != nil {
		return err
	}
	for _, s := range conf.Servers {
		if s.Address == to.cfg.Cluster.RPCAddress {
			return at.client(t).Operator().RaftTransferLeadershipByID(s.ID, nil)
		}
	}
	return fmt.Errorf("%s is no peer", to.cfg.Name)
}

// cut makes a server unreachable at once, as if its machine had lost power: its connections end, and nothing is said.
func (c *fellow) cut(t *testing.T) {
	t.Helper()
	c.server.CutOff()
	c.http.CloseClientConnections()
}
