package orchestrator_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/raft"

	"rockpool/internal/certs"
	"rockpool/internal/orchestrator/peer"
)

// Kinds of Raft's messages, as its network transport numbers them.
const (
	raftAppend   = 0
	raftVote     = 1
	raftSnapshot = 2
	raftPreVote  = 4

	forgedTerm = 1 << 20
)

// TestRaftStandsGarbage speaks to the Raft port of three servers with a certificate that was stolen from another: noise, lengths beyond memory, terms that are
// past, a snapshot nobody made, connections that say nothing. They go on electing one of theirs, and writing.
func TestRaftStandsGarbage(t *testing.T) {
	p := newPKI(t)
	one := p.server(t, "one", 3)
	two := p.server(t, "two", 3, one.cfg.Cluster.GossipAddress)
	servers := []*fellow{one, two, p.server(t, "three", 3, one.cfg.Cluster.GossipAddress)}
	for _, s := range servers {
		s.start(t)
		defer s.stop()
	}
	for _, s := range servers {
		if err := s.server.WaitLeader(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	client := func(s *fellow) *api.Client {
		conf := api.DefaultConfig()
		conf.Address, conf.SecretID = s.http.URL, "root"
		c, err := api.NewClient(conf)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	write := func(name string) {
		t.Helper()
		for _, s := range servers {
			retried(t, s.cfg.Name+": write "+name, func() error {
				_, err := client(s).Namespaces().Register(&api.Namespace{Name: name}, nil)
				return err
			})
		}
	}
	write("before")
	term := func(s *fellow) string {
		self, err := client(s).Agent().Self()
		if err != nil {
			t.Fatal(err)
		}
		return self.Stats["raft"]["term"]
	}

	st, err := certs.Load(p.files(t, certs.Server), "", true)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := peer.Listen(peer.Config{Address: "127.0.0.1:0", Dialer: st.RPCDialer()})
	if err != nil {
		t.Fatal(err)
	}
	defer stolen.Close()
	dial := func(s *fellow) net.Conn {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := stolen.Dial(ctx, peer.Raft, s.cfg.Cluster.RPCAddress)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	message := func(kind byte, v any) []byte {
		b := bytes.NewBuffer([]byte{kind})
		h := &codec.MsgpackHandle{}
		h.RawToString = true
		if err := codec.NewEncoder(b, h).Encode(v); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	head := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("forged"), Addr: []byte("127.0.0.1:1")}
	noise := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(noise.Uint32())
		}
		return b
	}
	field := func(kind byte, name string, rest ...byte) []byte {
		return append(append([]byte{kind, 0x81, 0xa0 | byte(len(name))}, name...), rest...)
	}
	says := map[string][]byte{
		"noise":                           random(64 << 10),
		"another kind of message":         {99, 0x80},
		"a map of 2^32":                   {raftAppend, 0xdf, 0xff, 0xff, 0xff, 0xff},
		"entries of 2^32":                 field(raftAppend, "Entries", 0xdd, 0xff, 0xff, 0xff, 0xff),
		"a leader of 2^32 bytes":          field(raftAppend, "Leader", 0xc6, 0xff, 0xff, 0xff, 0xff),
		"depth":                           append(field(raftAppend, "Entries"), bytes.Repeat([]byte{0x91}, 100_000)...),
		"entries of an old term":          message(raftAppend, &raft.AppendEntriesRequest{RPCHeader: head, Term: 0, LeaderCommitIndex: 1 << 40, Entries: []*raft.Log{{Index: 1, Term: 0, Data: random(100)}}}),
		"a vote of an old term":           message(raftVote, &raft.RequestVoteRequest{RPCHeader: head, Term: 0, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40, LeadershipTransfer: true}),
		"a vote for who is no member":     message(raftVote, &raft.RequestVoteRequest{RPCHeader: head, Term: forgedTerm, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40}),
		"a vote before, for no member":    message(raftPreVote, &raft.RequestPreVoteRequest{RPCHeader: head, Term: forgedTerm, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40}),
		"a snapshot of an old term":       append(message(raftSnapshot, &raft.InstallSnapshotRequest{RPCHeader: head, SnapshotVersion: 1, Term: 0, LastLogIndex: 1 << 40, Size: 1 << 30}), random(1<<20)...),
		"a snapshot of nothing but bytes": append([]byte{raftSnapshot}, random(4096)...),
		"HTTP":                            []byte("GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n"),
		"nothing":                         nil,
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for _, data := range says {
		for i := range 2 * len(servers) {
			c := dial(servers[i%len(servers)])
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Second))
				_, _ = c.Write(data)
				_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
			})
		}
	}
	wg.Wait()
	// Many that say nothing, while the others work.
	var silent []net.Conn
	for range 100 {
		silent = append(silent, dial(servers[len(silent)%3]))
	}
	write("after")
	for _, c := range silent {
		_ = c.Close()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+64<<20 {
		t.Errorf("%d MB are held that were not", (after.HeapAlloc-before.HeapAlloc)>>20)
	}
	// On a busy machine another of the three may have been elected; nobody else, and not in the term that a stranger named.
	now, err := client(two).Status().Leader()
	if err != nil || !slices.ContainsFunc(servers, func(s *fellow) bool { return s.cfg.Cluster.RPCAddress == now }) {
		t.Errorf("the leader is %s: %v", now, err)
	}
	for _, s := range servers {
		if n, err := strconv.Atoi(term(s)); err != nil || n >= forgedTerm {
			t.Errorf("the term of %s is %s", s.cfg.Name, term(s))
		}
	}
	for _, s := range servers {
		if ns, _, err := client(s).Namespaces().Info("after", nil); err != nil || ns.Name != "after" {
			t.Errorf("%s: %v", s.cfg.Name, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A server that knows the gossip key and has no certificate of this cluster gossips, and is nothing more: it gets no vote, and the cluster does not wait for it.
func TestAForgedMemberGetsNoVote(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	s := p.server(t, "one", 1)
	s.start(t)
	defer s.stop()
	if err := s.server.WaitLeader(t.Context()); err != nil {
		t.Fatal(err)
	}
	forged := other.server(t, "forged", 0, s.cfg.Cluster.GossipAddress)
	forged.start(t)
	defer forged.stop()
	conf := api.DefaultConfig()
	conf.Address, conf.SecretID = s.http.URL, "root"
	c, err := api.NewClient(conf)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the forged member is seen", func() bool {
		m, err := c.Agent().Members()
		if err != nil {
			t.Fatal(err)
		}
		return len(m.Members) == 2
	})
	for i := range 20 {
		if _, err := c.Namespaces().Register(&api.Namespace{Name: "n", Description: strings.Repeat("x", i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	peers, err := c.Operator().RaftGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range peers.Servers {
		if x.Voter != (x.Address == s.cfg.Cluster.RPCAddress) && x.Address != "" {
			t.Errorf("%+v", x)
		}
	}
	// Nor does it learn anything: it has no state.
	if _, _, err := c.Jobs().List(nil); err != nil {
		t.Error(err)
	}
}
