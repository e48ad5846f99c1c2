package network

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/network/egress"
)

// Bounds of the name service.
const (
	questionsAtOnce = 256 // of all runners
	questionsEach   = 16  // of one
	questionTime    = 4 * time.Second
	maxAnswers      = 64
	udpAnswer       = 1232 // bytes at most in one datagram
	minLearned      = time.Minute
	maxLearned      = time.Hour
	learnedGrace    = time.Minute // a program may use an address for a while after its name was looked up
	maxAnswerTTL    = 5 * time.Minute
)

// asker is what is known of a runner that asks.
type asker struct {
	policy  egress.Policy
	servers []netip.AddrPort // empty = the node's
}

// resolver answers the questions of runners: what the servers upstream say, without what a runner must not reach.
type resolver struct {
	log      logging.Logger
	whois    func(netip.Addr) (asker, bool)
	exchange func(ctx context.Context, q *dns.Msg, servers []netip.AddrPort) (*dns.Msg, error)
	learn    func(p egress.Policy, rules []egress.Rule, addrs []netip.Addr, ttl time.Duration) error

	mu    sync.Mutex
	total int
	each  map[netip.Addr]int
}

// ServeDNS answers one question.
func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	from, err := netip.ParseAddrPort(w.RemoteAddr().String())
	if err != nil {
		return
	}
	client := from.Addr().Unmap()
	who, known := r.whois(client)
	if !known || !r.enter(client) {
		return // nobody is told that there is something, and a flood is not answered by one
	}
	defer r.leave(client)
	ctx, cancel := context.WithTimeout(context.Background(), questionTime)
	defer cancel()
	a := r.answer(ctx, who, q)
	if a == nil {
		return
	}
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), size), udpAnswer)
		}
		a.Truncate(size)
	}
	_ = w.WriteMsg(a) // who does not wait for the answer asks again
}

func (r *resolver) enter(client netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total >= questionsAtOnce || r.each[client] >= questionsEach {
		return false
	}
	if r.each == nil {
		r.each = map[netip.Addr]int{}
	}
	r.total++
	r.each[client]++
	return true
}

func (r *resolver) leave(client netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	if r.each[client]--; r.each[client] == 0 {
		delete(r.each, client)
	}
}

// answer is nil where nothing is said.
func (r *resolver) answer(ctx context.Context, who asker, q *dns.Msg) *dns.Msg {
	if q.Response {
		return nil
	}
	reply := func(code int) *dns.Msg {
		a := new(dns.Msg)
		a.SetRcode(q, code)
		a.RecursionAvailable = true
		return a
	}
	if q.Opcode != dns.OpcodeQuery {
		return reply(dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 {
		return reply(dns.RcodeFormatError)
	}
	asked := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(asked.Name, "."))
	if asked.Qclass != dns.ClassINET || refusedType(asked.Qtype) || privateReverse(name) {
		return reply(dns.RcodeRefused)
	}
	var met []egress.Rule
	if !who.policy.Open() {
		// A dot inside of a label is written with a backslash: what looks like a name below an allowed one may be another's.
		if met = who.policy.ByName(name); len(met) == 0 || strings.ContainsRune(name, '\\') {
			return reply(dns.RcodeNameError) // a program learns at once that it cannot go there
		}
	}
	if asked.Qtype == dns.TypeAAAA || asked.Qtype == dns.TypeHTTPS || asked.Qtype == dns.TypeSVCB {
		return reply(dns.RcodeSuccess) // there is no IPv6, and no way around the addresses that are looked at here
	}
	up := new(dns.Msg)
	up.SetQuestion(asked.Name, asked.Qtype)
	up.SetEdns0(udpAnswer, false)
	said, err := r.exchange(ctx, up, who.servers)
	if err != nil {
		r.log.WithError(err).Debug("a question of a runner was not answered")
		return reply(dns.RcodeServerFailure)
	}
	if len(said.Question) != 1 || !strings.EqualFold(said.Question[0].Name, asked.Name) || said.Question[0].Qtype != asked.Qtype {
		return reply(dns.RcodeServerFailure)
	}
	a := reply(said.Rcode)
	var addrs []netip.Addr
	a.Answer, addrs = sift(said.Answer, name)
	for _, rr := range said.Ns {
		if soa, ok := rr.(*dns.SOA); ok && len(a.Answer) == 0 { // says how long there is nothing
			a.Ns = append(a.Ns, soa)
			break
		}
	}
	if len(met) > 0 && len(addrs) > 0 {
		ttl := maxAnswerTTL
		for _, rr := range a.Answer {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		if err := r.learn(who.policy, met, addrs, min(max(ttl, minLearned), maxLearned)+learnedGrace); err != nil {
			r.log.WithError(err).Warn("the addresses of an allowed name could not be allowed")
			return reply(dns.RcodeServerFailure)
		}
	}
	return a
}

func refusedType(t uint16) bool {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeMX, dns.TypeTXT, dns.TypeNS, dns.TypeSOA, dns.TypeSRV, dns.TypePTR, dns.TypeCAA,
		dns.TypeNAPTR, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeDS, dns.TypeDNSKEY, dns.TypeTLSA, dns.TypeDNAME:
		return false
	}
	return true // ANY and transfers among them: little asked, much answered
}

// privateReverse reports whether a question is for the name of an address that is not public: it would tell the names of an operator's machines.
func privateReverse(name string) bool {
	labels, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return name == "ip6.arpa" || strings.HasSuffix(name, ".ip6.arpa")
	}
	parts := strings.Split(labels, ".")
	if len(parts) != 4 {
		return true
	}
	a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return err != nil || !egress.Public(a)
}

// sift keeps what answers the question, along its chain of aliases, without addresses that no runner may reach. Otherwise a name of an attacker's
// could lead into the operator's network.
func sift(answer []dns.RR, name string) (kept []dns.RR, addrs []netip.Addr) {
	owners := map[string]bool{name: true}
	for range 12 { // aliases need not come in order
		n := len(owners)
		for _, rr := range answer {
			if c, ok := rr.(*dns.CNAME); ok && owners[canonical(c.Hdr.Name)] {
				owners[canonical(c.Target)] = true
			}
		}
		if len(owners) == n {
			break
		}
	}
	for _, rr := range answer {
		if len(kept) == maxAnswers {
			break
		}
		if rr == nil || !owners[canonical(rr.Header().Name)] {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			a, ok := netip.AddrFromSlice(rr.A)
			if a = a.Unmap(); !ok || !egress.Public(a) {
				continue
			}
			addrs = append(addrs, a)
		case *dns.AAAA, *dns.HTTPS, *dns.SVCB, *dns.RRSIG:
			continue
		}
		rr.Header().Ttl = min(rr.Header().Ttl, uint32(maxAnswerTTL/time.Second))
		kept = append(kept, rr)
	}
	return kept, addrs
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
