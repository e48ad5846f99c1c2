//go:build linux

package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/lifecycle"
	"rockpool/internal/orchestrator/model"
)

// traces lists everything of ours in the node's namespace and on its disk.
func (w *world) traces() (all []string) {
	w.t.Helper()
	in(w.t, w.node, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		links, err := listing(h.LinkList)
		if err != nil {
			return err
		}
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, w.cfg.Name) {
				all = append(all, "interface "+l.Attrs().Name)
			}
		}
		neighbours, err := listing(func() ([]netlink.Neigh, error) { return h.NeighList(0, unix.AF_INET) })
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT && w.cfg.Range.Contains(netip.AddrFrom4([4]byte(n.IP.To4()))) {
				all = append(all, "neighbour "+n.IP.String())
			}
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
			tables, err := c.ListTablesOfFamily(family)
			if err != nil {
				return err
			}
			for _, t := range tables {
				all = append(all, "table "+t.Name)
				sets, err := c.GetSets(t)
				if err != nil {
					return err
				}
				for _, s := range sets {
					switch s.Name { // what is there for good, or ends by itself
					case setForbidden, setRates, setAtOnce, setPackets, setQuestions:
						continue
					}
					elements, err := c.GetSetElements(s)
					if err != nil {
						return err
					}
					if len(elements) > 0 {
						all = append(all, fmt.Sprintf("%d elements in %s", len(elements), s.Name))
					}
				}
				chains, err := c.ListChainsOfTableFamily(family)
				if err != nil {
					return err
				}
				for _, ch := range chains {
					if strings.HasPrefix(ch.Name, "allow_") {
						all = append(all, "chain "+ch.Name)
					}
				}
			}
		}
		return nil
	})
	check(w.t, filepath.WalkDir(w.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			all = append(all, "file "+strings.TrimPrefix(path, w.cfg.Dir))
		}
		return err
	}))
	return all
}

// skeleton is what stays of a node whose runners have gone.
var skeleton = "interface rptest0 table rptest table rptest"

func TestDetachLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m := must[*Manager](t)(New(w.cfg))
	check(t, m.Sweep(t.Context(), nil))
	stop := w.run(m)
	r := w.attach(m, "one", Request{Ports: ports(20080, 80), Egress: "pypi.org,203.0.113.10:80", Bandwidth: "100"})
	if _, err := r.lookup("pypi.org"); err != nil {
		t.Fatal(err)
	}
	again := must[Attachment](t)(m.Attach(t.Context(), "one", Request{Mode: ModeBridge}))
	if again.NetNS != r.at.NetNS || again.Address != r.at.Address {
		t.Errorf("the second time it gets %v, not %v", again, r.at)
	}
	if got := strings.Join(w.traces(), " "); !strings.Contains(got, "interface rptestv000002") || !strings.Contains(got, "chain allow_") ||
		!strings.Contains(got, "neighbour 172.30.64.2") || !strings.Contains(got, "file /leases/one.json") {
		t.Fatalf("the test does not see what is there: %s", got)
	}
	check(t, m.Detach(t.Context(), "one"))
	check(t, m.Detach(t.Context(), "one"))
	check(t, m.Detach(t.Context(), "never was"))
	if got := strings.Join(w.traces(), " "); strings.Contains(strings.ReplaceAll(got, "interface rptestv000002", ""), "0000") || strings.Contains(got, "element") ||
		strings.Contains(got, "allow_") || strings.Contains(got, "file") || strings.Contains(got, "neighbour") {
		t.Errorf("at once left are: %s", got)
	}
	if r.reaches("203.0.113.10:80") == nil {
		t.Error("who still holds the namespace reaches something")
	}
	check(t, r.ns.Close())
	// The kernel removes the interface with its namespace, in its own time.
	eventually(t, func() bool { return strings.Join(w.traces(), " ") == skeleton })
	stop()
	if got := w.traces(); len(got) > 0 {
		t.Errorf("after the end there are: %s", got)
	}
}

func TestAFailedAttachLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.attach(m, "other", Request{Ports: ports(20500, 80)})
	before := strings.Join(w.traces(), " ")
	for name, r := range map[string]Request{
		"a port that another has": {Mode: ModeBridge, Ports: ports(20500, 80), Egress: "pypi.org"},
		"a mode nobody knows":     {Mode: "carrier pigeon"},
		"a policy":                {Mode: ModeBridge, Egress: "10.0.0.0/8"},
		"a name server":           {Mode: ModeBridge, DNS: &model.DNS{Servers: []string{"10.0.0.53"}}},
		"a configuration":         {Mode: "cni/nowhere"},
	} {
		_, err := m.Attach(t.Context(), "one", r)
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
		if got := strings.Join(w.traces(), " "); strings.ReplaceAll(got, " interface rptestv000003", "") != before {
			t.Errorf("%s (%v): there are %s, want %s", name, err, got, before)
		}
	}
	if _, err := m.Attach(t.Context(), "../one", Request{Mode: ModeBridge}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an id that is a path: %v", err)
	}
}

// abandon ends a manager as a crash does: nothing is taken back.
func abandon(t *testing.T, m *Manager) {
	t.Helper()
	check(t, m.bridged.close())
	check(t, m.node.Close())
}

func TestARestartKeepsWhatIsToBeKept(t *testing.T) {
	w := newWorld(t)
	first := must[*Manager](t)(New(w.cfg))
	check(t, first.Sweep(t.Context(), nil))
	kept := w.attach(first, "kept", Request{Ports: ports(20080, 80), Egress: "203.0.113.10:80"})
	w.attach(first, "unknown", Request{Ports: ports(20081, 80)})
	w.serveTCP(kept.ns, ":80")
	// A crash in the middle of attaching, and debris of one that was worse.
	check(t, first.leases.write(&lease{AllocID: "half", Request: Request{Mode: ModeBridge}, Address: netip.MustParseAddr("172.30.64.9")}))
	check(t, os.WriteFile(first.leases.path("broken"), []byte("{"), 0o600))
	check(t, lifecycle.OnOwnThread(func() error {
		if _, err := newNS(); err != nil {
			return err
		}
		return pin(first.nsPath("nameless"))
	}))
	abandon(t, first)
	if err := kept.reaches("203.0.113.10:80"); err != nil {
		t.Errorf("without a manager the runner does not reach what it may: %v", err)
	}
	if err := kept.reaches(nodeAddress + ":4646"); err == nil {
		t.Error("without a manager the runner reaches the node")
	}

	second := must[*Manager](t)(New(w.cfg))
	check(t, second.Sweep(t.Context(), []string{"kept", "half"}))
	w.run(second)
	at, err := second.Recover(t.Context(), "kept")
	if err != nil || at.Address != kept.at.Address || at.NetNS != kept.at.NetNS {
		t.Fatalf("it is %v, %v, not %v", at, err, kept.at)
	}
	for _, id := range []string{"unknown", "half", "broken"} {
		if _, err := second.Recover(t.Context(), id); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := kept.reaches("203.0.113.10:80"); err != nil {
		t.Errorf("the runner does not reach what it may: %v", err)
	}
	for _, to := range []string{"198.51.100.7:80", nodeAddress + ":4646"} {
		if kept.reaches(to) == nil {
			t.Errorf("%s can be reached", to)
		}
	}
	if said, err := connect(w.internet, nodeAddress+":20080", time.Second); err != nil || said != "203.0.113.10" {
		t.Errorf("its port: %q, %v", said, err)
	}
	got := strings.Join(w.traces(), " ")
	if strings.Contains(got, "nameless") || strings.Contains(got, "unknown") || strings.Contains(got, "half") || strings.Contains(got, "broken") {
		t.Errorf("left are: %s", got)
	}
	next := w.attach(second, "next", Request{})
	if next.at.Address == kept.at.Address {
		t.Error("an address is given out twice")
	}
}

func TestFlushedTablesComeBack(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{})
	for name, spoil := range map[string]func(*nftables.Conn){
		"the whole ruleset": func(c *nftables.Conn) { c.FlushRuleset() },
		"one table":         func(c *nftables.Conn) { c.DelTable(c.AddTable(m.bridged.firewall.bridge)) },
		"the addresses alone": func(c *nftables.Conn) {
			for _, set := range must[[]*nftables.Set](t)(c.GetSets(m.bridged.firewall.bridge)) {
				c.FlushSet(set)
			}
		},
		"the rules alone": func(c *nftables.Conn) { c.FlushTable(c.AddTable(m.bridged.firewall.inet)) },
	} {
		flush := func() {
			in(t, w.node, func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				spoil(c)
				return c.Flush()
			})
		}
		flush()
		if name != "the addresses alone" { // which cuts off who has one, and is noticed with the next change
			eventually(t, func() bool { return r.reaches("203.0.113.10:80") == nil && r.reaches(nodeAddress+":4646") != nil })
			flush()
		}
		check(t, m.Detach(t.Context(), "late"))
		late := w.attach(m, "late", Request{})
		eventually(t, func() bool { return late.reaches(nodeAddress+":4646") != nil })
		if err := late.reaches("203.0.113.10:80"); err != nil {
			t.Errorf("%s: one that came meanwhile: %v", name, err)
		}
	}
	eventually(t, func() bool {
		m.bridged.firewall.mu.Lock()
		defer m.bridged.firewall.mu.Unlock()
		return m.bridged.firewall.intact()
	})
	check(t, m.Detach(t.Context(), "one"))
}

func TestABridgeThatSomebodyRemoved(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.attach(m, "one", Request{})
	check(t, m.bridged.links.remove("rptest0"))
	_, err := m.Attach(t.Context(), "two", Request{Mode: ModeBridge})
	if err == nil {
		t.Fatal("a runner is connected to nothing")
	}
	if r := w.attach(m, "two", Request{}); r.reaches("203.0.113.10:80") != nil {
		t.Error("the next runner has no network")
	}
}

func TestBandwidth(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{Bandwidth: "8"})
	for what, ns := range map[string]*os.File{"what it sends": r.ns, "what it receives": w.node} {
		in(t, ns, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			name := inside
			if ns == w.node {
				name = m.bridged.links.port(netip.MustParseAddr(r.at.Address))
			}
			l, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			list, err := h.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range list {
				if tbf, ok := q.(*netlink.Tbf); ok {
					if tbf.Rate != 1_000_000 {
						t.Errorf("%s: %d bytes a second, want 1000000", what, tbf.Rate)
					}
					return nil
				}
			}
			t.Errorf("%s is not limited: %v", what, list)
			return nil
		})
	}
	if err := r.reaches("203.0.113.10:80"); err != nil {
		t.Error(err)
	}
}

func TestManyAtOnceOnSeveralBridges(t *testing.T) {
	w := newWorld(t)
	w.cfg.Range = netip.MustParsePrefix("172.30.64.0/21")
	m := w.manager()
	// As if the first bridge were full.
	m.bridged.pool.next = m.bridged.pool.slice - 4
	const n = 12
	runners := make([]*runner, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { runners[i] = w.attach(m, fmt.Sprintf("r%d", i), Request{}) })
	}
	wg.Wait()
	seen := map[string]bool{}
	second := 0
	for _, r := range runners {
		if seen[r.at.Address] {
			t.Errorf("%s is given out twice", r.at.Address)
		}
		seen[r.at.Address] = true
		if strings.HasPrefix(r.at.Address, "172.30.68.") {
			second++
		}
		if err := r.reaches("203.0.113.10:80"); err != nil {
			t.Errorf("%s: %v", r.at.Address, err)
		}
		if _, err := r.lookup("pypi.org"); err != nil {
			t.Errorf("%s: names: %v", r.at.Address, err)
		}
		if r.reaches("172.30.68.1:4646") == nil {
			t.Errorf("%s reaches the node", r.at.Address)
		}
	}
	if second == 0 {
		t.Fatal("the second bridge is not used")
	}
	a, b := runners[0], runners[0]
	for _, r := range runners {
		if r.at.Address < a.at.Address {
			a = r
		}
		if r.at.Address > b.at.Address {
			b = r
		}
	}
	w.serveTCP(b.ns, ":8080")
	if a.reaches(b.at.Address+":8080") == nil {
		t.Error("a neighbour on another bridge can be reached")
	}
}

func TestNeighboursInARangeThatLooksPublic(t *testing.T) {
	w := newWorld(t)
	w.cfg.Range = netip.MustParsePrefix("198.51.96.0/21")
	m := w.manager()
	a := w.attach(m, "one", Request{})
	same := w.attach(m, "two", Request{})
	m.bridged.pool.next = m.bridged.pool.slice + 2
	for name, b := range map[string]*runner{"on the same bridge": same, "on another bridge": w.attach(m, "three", Request{})} {
		w.serveTCP(b.ns, ":8080")
		if a.reaches(b.at.Address+":8080") == nil {
			t.Errorf("a neighbour (%s, %s) can be reached", name, b.at.Address)
		}
	}
	if err := a.reaches("203.0.113.10:80"); err != nil {
		t.Error(err)
	}
}

func TestAnAddressIsUsedAgainWithoutItsConnections(t *testing.T) {
	w := newWorld(t)
	w.cfg.Range = netip.MustParsePrefix("172.30.64.0/29") // five runners
	m := w.manager()
	r := w.attach(m, "first", Request{})
	if err := r.reaches("203.0.113.10:80"); err != nil {
		t.Fatal(err)
	}
	address := r.at.Address
	check(t, m.Detach(t.Context(), "first"))
	for i := range 4 {
		w.attach(m, fmt.Sprintf("r%d", i), Request{})
	}
	if again := w.attach(m, "again", Request{}); again.at.Address != address {
		t.Fatalf("the last address is %s, want %s", again.at.Address, address)
	}
	in(t, w.node, func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, f := range flows {
			if f.Forward.SrcIP.String() == address {
				t.Errorf("the kernel remembers %s", f)
			}
		}
		return nil
	})
	if _, err := m.Attach(t.Context(), "one-too-many", Request{Mode: ModeBridge}); !errors.Is(err, errNoAddress) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("without an address left: %v", err)
	}
}

func TestASecondNodeOnTheMachine(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.attach(m, "one", Request{})
	other := w.cfg
	other.Dir = filepath.Join(t.TempDir(), "network")
	second := must[*Manager](t)(New(other))
	if second.Fingerprint()["network.bridge"] != "" || second.Fences()[0].InForce || !strings.Contains(second.Fences()[0].Detail, "give this one another range") {
		t.Errorf("a second node offers the same range: %v", second.Fences())
	}
	_, err := second.Attach(t.Context(), "two", Request{Mode: ModeBridge})
	if !fault.Is(err, fault.Unsupported) {
		t.Errorf("attach: %v", err)
	}
	check(t, second.Close())
	other.Name, other.Range = "rpother", netip.MustParsePrefix("172.30.80.0/20")
	third := must[*Manager](t)(New(other))
	check(t, third.Sweep(t.Context(), nil))
	w.run(third)
	r := w.attach(third, "two", Request{})
	if err := r.reaches("203.0.113.10:80"); err != nil {
		t.Errorf("with a range of its own: %v", err)
	}
	if r.reaches("172.30.64.1:4646") == nil {
		t.Error("it reaches the node by the other node's bridge")
	}
	other.Name, other.Range = "rpthird", netip.MustParsePrefix("203.0.113.0/24")
	fourth := must[*Manager](t)(New(other))
	if f := fourth.Fences()[0]; f.InForce || !strings.Contains(f.Detail, "overlaps with the route to 203.0.113.0/24") {
		t.Errorf("a range that the node uses: %v", f)
	}
	check(t, fourth.Close())
}

func TestFingerprint(t *testing.T) {
	w := newWorld(t)
	attr := w.manager().Fingerprint()
	for k, want := range map[string]string{"network.bridge": "1", "unique.network.ip-address": nodeAddress,
		"sandbox.fence.network.bridge": "true", "sandbox.fence.network.nftables": "true"} {
		if attr[k] != want {
			t.Errorf("%s = %q, want %q", k, attr[k], want)
		}
	}
}

func BenchmarkAttachAndDetach(b *testing.B) {
	w := newWorld(b)
	m := w.manager()
	var attach, detach time.Duration
	for b.Loop() {
		id := ident.New()
		began := time.Now()
		if _, err := m.Attach(b.Context(), id, Request{Mode: ModeBridge, Egress: "203.0.113.0/24"}); err != nil {
			b.Fatal(err)
		}
		attach += time.Since(began)
		began = time.Now()
		check(b, m.Detach(b.Context(), id))
		detach += time.Since(began)
	}
	b.ReportMetric(float64(attach.Microseconds())/float64(b.N), "µs/attach")
	b.ReportMetric(float64(detach.Microseconds())/float64(b.N), "µs/detach")
}

func BenchmarkAttachWithManyThere(b *testing.B) {
	w := newWorld(b)
	m := w.manager()
	for i := range 1000 {
		w.attachQuietly(m, fmt.Sprintf("there-%d", i))
	}
	for b.Loop() {
		id := ident.New()
		w.attachQuietly(m, id)
		b.StopTimer()
		check(b, m.Detach(b.Context(), id))
		b.StartTimer()
	}
}

func (w *world) attachQuietly(m *Manager, id string) {
	if _, err := m.Attach(w.t.Context(), id, Request{Mode: ModeBridge}); err != nil {
		w.t.Fatal(err)
	}
}
