package membership_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/membership"
)

func member(id, status, rpc, expect string) membership.Member {
	host, port, _ := net.SplitHostPort(rpc)
	return membership.Member{Name: id + ".global", Status: status, Tags: map[string]string{"id": id, "rpc_addr": host, "port": port, "expect": expect}}
}

func TestTheServersOfTheFirstConfiguration(t *testing.T) {
	three := []membership.Member{member("c", "alive", "10.0.0.3:1", "3"), member("a", "alive", "10.0.0.1:1", "3"), member("b", "alive", "10.0.0.2:1", "3")}
	for _, c := range []struct {
		name    string
		members []membership.Member
		ok      bool
	}{
		{"all three", three, true},
		{"only two", three[:2], false},
		{"one of them failed", append(slices.Clone(three[:2]), member("b", "failed", "10.0.0.2:1", "3")), false},
		{"a failed one besides", append(slices.Clone(three), member("z", "failed", "10.0.0.9:1", "3")), true},
		{"four", append(slices.Clone(three), member("d", "alive", "10.0.0.4:1", "3")), false},
		{"one expects another number", append(slices.Clone(three[:2]), member("b", "alive", "10.0.0.2:1", "5")), false},
		{"one belongs to a cluster that exists", append(slices.Clone(three[:2]), member("b", "alive", "10.0.0.2:1", "")), false},
		{"two with one id", append(slices.Clone(three[:2]), member("a", "alive", "10.0.0.2:1", "3")), false},
	} {
		peers, founder, err := membership.Founders(c.members, 3)
		if (err == nil) != c.ok || c.ok && (founder != "a" || len(peers) != 3 || peers[2] != (consensus.Peer{ID: "c", Address: "10.0.0.3:1", Voter: true})) {
			t.Errorf("%s: %v, %q, %v", c.name, peers, founder, err)
		}
	}
}

func TestChangesOfTheConfiguration(t *testing.T) {
	peers := []consensus.Peer{{ID: "a", Address: "h1:1", Voter: true}, {ID: "b", Address: "h2:1", Voter: true}, {ID: "c", Address: "h3:1", Voter: true}}
	all := []membership.Member{member("a", "alive", "h1:1", ""), member("b", "alive", "h2:1", ""), member("c", "alive", "h3:1", "")}
	for _, c := range []struct {
		name    string
		members []membership.Member
		want    []membership.Change
	}{
		{"nothing to do", all, nil},
		{"a new one gets no vote", append(slices.Clone(all), member("d", "alive", "h4:1", "")), []membership.Change{{Peer: consensus.Peer{ID: "d", Address: "h4:1"}}}},
		{"a failed one stays", append(slices.Clone(all[:2]), member("c", "failed", "h3:1", "")), nil},
		{"one that left goes", append(slices.Clone(all[:2]), member("c", "left", "h3:1", "")), []membership.Change{{Remove: true, Peer: peers[2]}}},
		{"one that nobody knows stays", all[:2], nil},
		{"an address changes, and the vote stays", append(slices.Clone(all[:2]), member("c", "alive", "h9:1", "")),
			[]membership.Change{{Peer: consensus.Peer{ID: "c", Address: "h9:1", Voter: true}}}},
		{"one without its data replaces itself", append(slices.Clone(all[:2]), member("new", "alive", "h3:1", "")),
			[]membership.Change{{Remove: true, Peer: peers[2]}, {Peer: consensus.Peer{ID: "new", Address: "h3:1"}}}},
		{"one without an id is nobody", append(slices.Clone(all), member("", "alive", "h4:1", "")), nil},
		{"of two with one id none takes the vote along", append(slices.Clone(all), membership.Member{
			Name: "forged.global", Status: "alive", Tags: map[string]string{"id": "c", "rpc_addr": "h9", "port": "1"}}), nil},
		{"one that left and is alive under another name stays",
			append(slices.Clone(all), membership.Member{Name: "old.global", Status: "left", Tags: map[string]string{"id": "c"}}), nil},
	} {
		if got := membership.Changes(c.members, peers); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// Carried out, the changes lead to a configuration to which there are none, and no server that is alive is ever taken out.
func TestChangesSettle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var members []membership.Member
		alive := map[string]bool{}
		for i := range rapid.IntRange(0, 6).Draw(t, "members") {
			status := rapid.SampledFrom([]string{"alive", "failed", "left"}).Draw(t, "status")
			id := fmt.Sprint("s", i)
			members = append(members, member(id, status, fmt.Sprintf("h%d:1", i), ""))
			alive[id] = status == "alive"
		}
		var peers []consensus.Peer
		for i := range rapid.IntRange(0, 6).Draw(t, "peers") {
			peers = append(peers, consensus.Peer{ID: fmt.Sprint("s", i), Address: fmt.Sprintf("h%d:1", rapid.IntRange(0, 8).Draw(t, "address")), Voter: rapid.Bool().Draw(t, "voter")})
		}
		for range 4 {
			for _, c := range membership.Changes(members, peers) {
				i := slices.IndexFunc(peers, func(p consensus.Peer) bool { return p.ID == c.Peer.ID })
				switch {
				case c.Remove && alive[c.Peer.ID]:
					t.Fatalf("a server that is alive is removed: %+v", c)
				case c.Remove && i >= 0:
					peers = slices.Delete(peers, i, i+1)
				case i >= 0:
					peers[i] = c.Peer
				case !c.Remove:
					peers = append(peers, c.Peer)
				}
			}
		}
		if left := membership.Changes(members, peers); len(left) > 0 {
			t.Fatalf("it does not settle: %+v", left)
		}
	})
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	good := membership.Config{Name: "a", RPCAddress: "127.0.0.1:1", Address: "127.0.0.1:2"}
	for name, change := range map[string]func(*membership.Config){
		"a short key":    func(c *membership.Config) { c.Key = make([]byte, 10) },
		"an even number": func(c *membership.Config) { c.Expect = 2 },
		"no port":        func(c *membership.Config) { c.Address = "127.0.0.1" },
		"no rpc address": func(c *membership.Config) { c.RPCAddress = "" },
	} {
		c := good
		change(&c)
		if _, err := membership.New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run starts a member and returns it with what ends it.
func run(t *testing.T, cfg membership.Config) (*membership.Membership, func()) {
	t.Helper()
	cfg.Interval = 50 * time.Millisecond
	m, err := membership.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("%s: %v", cfg.Name, err)
		}
	})
	<-m.Started()
	return m, sync.OnceFunc(func() { cancel(); wg.Wait() })
}

func await(t *testing.T, what string, m *membership.Membership, f func([]membership.Member) bool) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		changed := m.Changed()
		if f(m.Members()) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s: not within 10 s, the members are %+v", what, m.Members())
		}
	}
}

func count(status string, n int) func([]membership.Member) bool {
	return func(all []membership.Member) bool {
		return n == len(slices.DeleteFunc(slices.Clone(all), func(m membership.Member) bool { return m.Status != status }))
	}
}

func TestServersMeetAndMissOneAnother(t *testing.T) {
	defer goleak.VerifyNone(t)
	key := bytes.Repeat([]byte{1}, 32)
	cfg := func(name string) membership.Config {
		return membership.Config{Name: name, ID: "id-" + name, RPCAddress: "127.0.0.1:" + name, Address: free(t), Key: key, Build: "1.2.3"}
	}
	first := cfg("1")
	a, stopA := run(t, first)
	defer stopA()
	second := cfg("2")
	second.Join = []string{first.Address}
	b, stopB := run(t, second)
	defer stopB()
	await(t, "they meet", a, count(membership.Alive, 2))
	await(t, "they meet", b, count(membership.Alive, 2))
	if m := a.Members()[1]; m.ID() != "id-2" || m.RPCAddress() != "127.0.0.1:2" || m.Tags["build"] != "1.2.3" || m.Tags["role"] != membership.Role {
		t.Errorf("the other one is %+v", m)
	}
	stranger := cfg("3")
	stranger.Key = bytes.Repeat([]byte{2}, 32)
	c, stopC := run(t, stranger)
	defer stopC()
	if n, err := c.Join([]string{first.Address}); err == nil || n != 0 {
		t.Errorf("a server with another key joined: %d, %v", n, err)
	}
	foreign := cfg("4")
	foreign.Region = "moon"
	d, stopD := run(t, foreign)
	defer stopD()
	if _, err := d.Join([]string{first.Address}); err == nil {
		t.Error("a server of another region joined")
	}
	if !count(membership.Alive, 2)(a.Members()) {
		t.Errorf("the members are %+v", a.Members())
	}
	stopB()
	await(t, "a loss is noticed", a, count(membership.Failed, 1))
	if err := a.ForceLeave("nobody", false); err == nil {
		t.Error("nobody was forced to leave")
	}
	if err := a.ForceLeave("2", false); err != nil {
		t.Fatal(err)
	}
	await(t, "it has left", a, count(membership.Left, 1))
}

// The key of gossip is replaced on servers that run, and outlives a restart with the old one in the configuration.
func TestAKeyIsReplaced(t *testing.T) {
	defer goleak.VerifyNone(t)
	old, next := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	text := base64.StdEncoding.EncodeToString
	cfg := func(name string) membership.Config {
		return membership.Config{Name: name, ID: "id-" + name, RPCAddress: "127.0.0.1:" + name, Address: free(t), Advertise: "127.0.0.1", Key: old, Dir: t.TempDir()}
	}
	first, second := cfg("1"), cfg("2")
	second.Join = []string{first.Address}
	a, stopA := run(t, first)
	defer stopA()
	b, stopB := run(t, second)
	defer func() { stopB() }()
	await(t, "they meet", a, count(membership.Alive, 2))
	await(t, "they meet", b, count(membership.Alive, 2))
	if _, err := a.ChangeKey(membership.InstallKey, "c2hvcnQ="); err == nil {
		t.Error("a short key is installed")
	}
	if _, err := a.ChangeKey(membership.UseKey, text(next)); err == nil || !strings.Contains(err.Error(), "1.global") {
		t.Errorf("a key that nobody knows is used: %v", err)
	}
	for _, step := range []struct {
		change membership.KeyChange
		key    []byte
	}{{membership.InstallKey, next}, {membership.UseKey, next}, {membership.RemoveKey, old}} {
		if _, err := a.ChangeKey(step.change, text(step.key)); err != nil {
			t.Fatalf("step %d: %v", step.change, err)
		}
	}
	stopB()
	await(t, "the loss is noticed", a, count(membership.Failed, 1))
	b, stopB = run(t, second)
	await(t, "it is back", a, count(membership.Alive, 2))
	await(t, "it is back", b, count(membership.Alive, 2))
	keys, err := b.Keys()
	if err != nil || keys.NumNodes != 2 || len(keys.Keys) != 1 || keys.Keys[text(next)] != 2 || keys.PrimaryKeys[text(next)] != 2 {
		t.Errorf("the keys are %+v, %v", keys, err)
	}
	open := cfg("3")
	open.Key = nil
	c, stopC := run(t, open)
	defer stopC()
	if _, err := c.Keys(); err == nil || !strings.Contains(err.Error(), "server.encrypt") {
		t.Errorf("keys of open gossip: %v", err)
	}
}
