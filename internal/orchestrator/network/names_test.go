package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/network/egress"
)

// conversation is a dns.ResponseWriter of one client.
type conversation struct {
	dns.ResponseWriter
	from net.Addr
	said *dns.Msg
}

func (c *conversation) RemoteAddr() net.Addr { return c.from }

func (c *conversation) WriteMsg(m *dns.Msg) error {
	if _, err := m.Pack(); err != nil {
		return err
	}
	c.said = m
	return nil
}

type learned struct {
	rules []egress.Rule
	addrs []netip.Addr
	ttl   time.Duration
}

func testResolver(answer func(q *dns.Msg) (*dns.Msg, error), policy string, into *[]learned) *resolver {
	p, err := egress.Parse(policy)
	if err != nil {
		panic(err)
	}
	return &resolver{log: logging.Discard(),
		whois:    func(a netip.Addr) (asker, bool) { return asker{policy: p}, a == netip.MustParseAddr("172.30.64.2") },
		exchange: func(_ context.Context, q *dns.Msg, _ []netip.AddrPort) (*dns.Msg, error) { return answer(q) },
		learn: func(_ egress.Policy, rules []egress.Rule, addrs []netip.Addr, ttl time.Duration) error {
			*into = append(*into, learned{rules, addrs, ttl})
			return nil
		}}
}

func ask(r *resolver, from string, q *dns.Msg) *dns.Msg {
	c := &conversation{from: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
	r.ServeDNS(c, q)
	return c.said
}

func record(t testing.TB, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func TestAnswersAreSifted(t *testing.T) {
	for name, c := range map[string]struct {
		answer []string
		kept   int
		learns []string
		ttl    time.Duration
	}{
		"an address":                {[]string{"pypi.org. 120 A 203.0.113.1"}, 1, []string{"203.0.113.1"}, 3 * time.Minute},
		"a short life":              {[]string{"pypi.org. 0 A 203.0.113.1"}, 1, []string{"203.0.113.1"}, minLearned + learnedGrace},
		"a long life":               {[]string{"pypi.org. 999999 A 203.0.113.1"}, 1, []string{"203.0.113.1"}, maxAnswerTTL + learnedGrace},
		"aliases":                   {[]string{"pypi.org. 60 CNAME a.cdn.example.", "a.cdn.example. 60 CNAME b.cdn.example.", "b.cdn.example. 60 A 203.0.113.2"}, 3, []string{"203.0.113.2"}, 2 * time.Minute},
		"aliases out of order":      {[]string{"b.cdn.example. 60 A 203.0.113.2", "a.cdn.example. 60 CNAME B.cdn.example.", "PyPI.org. 60 CNAME a.cdn.example."}, 3, []string{"203.0.113.2"}, 2 * time.Minute},
		"a loop":                    {[]string{"pypi.org. 60 CNAME a.example.", "a.example. 60 CNAME pypi.org."}, 2, nil, 0},
		"what nobody asked":         {[]string{"bank.example. 60 A 203.0.113.66", "pypi.org. 60 A 203.0.113.1"}, 1, []string{"203.0.113.1"}, 2 * time.Minute},
		"a metadata service":        {[]string{"pypi.org. 60 A 169.254.169.254"}, 0, nil, 0},
		"a private address":         {[]string{"pypi.org. 60 A 10.0.0.1", "pypi.org. 60 A 203.0.113.1"}, 1, []string{"203.0.113.1"}, 2 * time.Minute},
		"a mapped private address":  {[]string{"pypi.org. 60 AAAA ::ffff:10.0.0.1"}, 0, nil, 0},
		"an alias into the network": {[]string{"pypi.org. 60 CNAME db.internal.", "db.internal. 60 A 192.168.0.1"}, 1, nil, 0},
	} {
		var got []learned
		r := testResolver(func(q *dns.Msg) (*dns.Msg, error) {
			a := new(dns.Msg)
			a.SetReply(q)
			for _, s := range c.answer {
				a.Answer = append(a.Answer, record(t, s))
			}
			a.Extra = append(a.Extra, record(t, "pypi.org. 60 A 10.0.0.9"))
			return a, nil
		}, "pypi.org:443", &got)
		q := new(dns.Msg)
		q.SetQuestion("pypi.org.", dns.TypeA)
		a := ask(r, "172.30.64.2:5000", q)
		if a == nil || len(a.Answer) != c.kept || len(a.Extra) > 0 || a.Rcode != dns.RcodeSuccess {
			t.Errorf("%s: the answer is %v", name, a)
			continue
		}
		var addrs []string
		var ttl time.Duration
		for _, l := range got {
			ttl = l.ttl
			for _, x := range l.addrs {
				addrs = append(addrs, x.String())
			}
		}
		if !slices.Equal(addrs, c.learns) || ttl != c.ttl {
			t.Errorf("%s: learned are %v for %v, want %v for %v", name, addrs, ttl, c.learns, c.ttl)
		}
		for _, rr := range a.Answer {
			if time.Duration(rr.Header().Ttl)*time.Second > ttl && ttl > 0 {
				t.Errorf("%s: a program may keep the answer for longer than it may use it", name)
			}
		}
	}
}

func TestOnlyRunnersAreAnswered(t *testing.T) {
	var got []learned
	asked := 0
	r := testResolver(func(*dns.Msg) (*dns.Msg, error) { asked++; return nil, errors.New("nobody is there") }, "", &got)
	q := new(dns.Msg)
	q.SetQuestion("pypi.org.", dns.TypeA)
	if a := ask(r, "203.0.113.66:53", q); a != nil || asked > 0 {
		t.Errorf("a stranger gets %v", a)
	}
	if a := ask(r, "172.30.64.2:53", q); a == nil || a.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a server upstream: %v", a)
	}
	wrong := testResolver(func(*dns.Msg) (*dns.Msg, error) {
		a := new(dns.Msg)
		a.SetQuestion("bank.example.", dns.TypeA)
		a.Answer = []dns.RR{record(t, "bank.example. 60 A 203.0.113.66")}
		return a, nil
	}, "", &got)
	if a := ask(wrong, "172.30.64.2:53", q); a.Rcode != dns.RcodeServerFailure || len(a.Answer) > 0 {
		t.Errorf("an answer to another question: %v", a)
	}
	for range questionsEach {
		if !r.enter(netip.MustParseAddr("172.30.64.2")) {
			t.Fatal("too few questions at once")
		}
	}
	if a := ask(r, "172.30.64.2:53", q); a != nil {
		t.Errorf("one question too many at once: %v", a)
	}
}

func TestADotInALabelIsNoBorder(t *testing.T) {
	var got []learned
	r := testResolver(func(q *dns.Msg) (*dns.Msg, error) {
		a := new(dns.Msg)
		a.SetReply(q)
		a.Answer = []dns.RR{record(t, q.Question[0].Name+" 60 A 203.0.113.66")}
		return a, nil
	}, "*.example.org", &got)
	for name, want := range map[string]int{"x.example.org.": dns.RcodeSuccess, `x\.example.org.`: dns.RcodeNameError, `x\046example.org.`: dns.RcodeNameError} {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		wire, err := q.Pack()
		if err == nil {
			err = q.Unpack(wire)
		}
		if err != nil {
			t.Fatal(err)
		}
		if a := ask(r, "172.30.64.2:53", q); a == nil || a.Rcode != want {
			t.Errorf("%s: %v", name, a)
		}
	}
	if len(got) != 1 {
		t.Errorf("learned %v", got)
	}
}

func TestAnswersFitADatagram(t *testing.T) {
	var got []learned
	r := testResolver(func(q *dns.Msg) (*dns.Msg, error) {
		a := new(dns.Msg)
		a.SetReply(q)
		for range 200 {
			a.Answer = append(a.Answer, record(t, `pypi.org. 60 TXT "`+strings.Repeat("x", 200)+`"`))
		}
		return a, nil
	}, "", &got)
	for _, size := range []uint16{0, 512, 1232, 65535} {
		q := new(dns.Msg)
		q.SetQuestion("pypi.org.", dns.TypeTXT)
		if size > 0 {
			q.SetEdns0(size, false)
		}
		a := ask(r, "172.30.64.2:53", q)
		if a == nil || !a.Truncated || a.Len() > udpAnswer {
			t.Errorf("for %d bytes: %d bytes, truncated %v", size, a.Len(), a.Truncated)
		}
	}
}

func FuzzServeDNS(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("pypi.org.", dns.TypeA)
	question, _ := q.Pack()
	a := new(dns.Msg)
	a.SetReply(q)
	a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "pypi.org.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(10, 0, 0, 1)}}
	answer, _ := a.Pack()
	f.Add(question, answer)
	f.Fuzz(func(t *testing.T, question, answer []byte) {
		q, said := new(dns.Msg), new(dns.Msg)
		if q.Unpack(question) != nil || said.Unpack(answer) != nil {
			return
		}
		var got []learned
		for _, policy := range []string{"", "pypi.org,*.example:53/udp"} {
			r := testResolver(func(*dns.Msg) (*dns.Msg, error) { return said.Copy(), nil }, policy, &got)
			a := ask(r, "172.30.64.2:53", q)
			if a == nil {
				continue
			}
			for _, rr := range a.Answer {
				if x, ok := rr.(*dns.A); ok {
					if ip, ok := netip.AddrFromSlice(x.A); !ok || !egress.Public(ip.Unmap()) {
						t.Errorf("%v came through", rr)
					}
				}
			}
		}
		for _, l := range got {
			if slices.ContainsFunc(l.addrs, func(x netip.Addr) bool { return !egress.Public(x) }) || len(l.rules) == 0 {
				t.Errorf("learned %v", l)
			}
		}
	})
}
