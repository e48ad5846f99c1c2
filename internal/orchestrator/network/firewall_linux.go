package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"rockpool/internal/orchestrator/network/egress"
)

// Limits for one runner.
const (
	connectionsPerSecond = 100 // new ones
	connectionsBurst     = 200
	connectionsAtOnce    = 256
	packetsPerSecond     = 2000 // that are not TCP
	packetsBurst         = 4000
	askingAtOnce         = 16 // of them to the name service, which has room for many runners
	questionsPerSecond   = 50 // to the name service
	questionsBurst       = 100
	learnedPerPolicy     = 4096 // addresses of allowed names
)

// Names of sets and maps, as `nft list ruleset` shows them.
const (
	setSenders    = "senders"   // port of the bridge, hardware address, address
	mapPolicies   = "policies"  // address -> what it may reach
	mapPorts      = "ports"     // protocol and port of the node -> address and port of a runner
	setForbidden  = "forbidden" // what nobody reaches
	setRates      = "rates"     // new connections by source
	setAtOnce     = "at_once"   // open connections by source
	setAsking     = "asking"    // open connections to the name service by source
	setPackets    = "packets"   // packets that are not TCP, by source
	setQuestions  = "questions" // packets to the name service, by source
	chainRunners  = "from_runner"
	chainToRunner = "to_runner"
	chainNode     = "to_node"
	chainPublic   = "public"
	chainMapped   = "mapped"
)

// member is what the firewall has to know of a runner.
type member struct {
	port   string // of the bridge
	addr   netip.Addr
	policy egress.Policy
	ports  []mapping
}

// firewall is the two tables of a node's runners. Each change is one transaction of the kernel.
type firewall struct {
	name       string
	ranges     netip.Prefix
	nameserver netip.Addr
	inet       *nftables.Table
	bridge     *nftables.Table

	mu       sync.Mutex
	conn     *nftables.Conn
	ids      uint32
	policies map[string]*allowList              // by the policy's text
	members  map[netip.Addr]member              // nil = the tables are not installed
	written  map[*nftables.Table]map[string]int // rules by chain, of the chains that are there for good
}

// allowList is a chain, with the sets of the addresses that names stood for.
type allowList struct {
	chain   string
	any     *nftables.Set // addresses
	ports   *nftables.Set // addresses, protocols, ports
	members int
	learned map[string]time.Time // by element, until when
}

func newFirewall(ns *os.File, name string, r netip.Prefix, nameserver netip.Addr) (*firewall, error) {
	// The library does not survive a kernel without this family of sockets. Asking for one also loads the module.
	probe, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	_ = unix.Close(probe)
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &firewall{name: name, ranges: r, nameserver: nameserver, conn: conn,
		inet:   &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		bridge: &nftables.Table{Name: name, Family: nftables.TableFamilyBridge}}, nil
}

func (f *firewall) close() error { return f.conn.CloseLasting() }

func (f *firewall) id() uint32 { f.ids++; return f.ids }

func (f *firewall) set(t *nftables.Table, name string, key nftables.SetDatatype) *nftables.Set {
	return &nftables.Set{Table: t, Name: name, ID: f.id(), KeyType: key}
}

var (
	typeSender = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	typePort   = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	typeTarget = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	typeDest   = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
)

// install replaces the tables by new ones with these members, in one transaction.
func (f *firewall) install(members map[netip.Addr]member) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.build(members)
}

// build does that. After an error all is as before. The caller holds mu.
func (f *firewall) build(members map[netip.Addr]member) error {
	policies, before, written := f.policies, f.members, f.written
	f.policies, f.members, f.written = map[string]*allowList{}, map[netip.Addr]member{}, map[*nftables.Table]map[string]int{f.inet: {}, f.bridge: {}}
	for _, t := range []*nftables.Table{f.inet, f.bridge} { // removing asks for its being there
		f.conn.AddTable(t)
		f.conn.DelTable(t)
		f.conn.AddTable(t)
	}
	errs := []error{f.guard(), f.filter(), f.translate()}
	for _, m := range members {
		errs = append(errs, f.admit(m))
	}
	if err := errors.Join(append(errs, f.conn.Flush())...); err != nil {
		f.policies, f.members, f.written = policies, before, written
		return fmt.Errorf("install the tables %q of nftables: %w", f.name, err)
	}
	return nil
}

// repair installs the tables again if somebody has removed or emptied them, and reports whether that was so.
func (f *firewall) repair() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members == nil || f.intact() {
		return false, nil
	}
	return true, f.build(f.members)
}

// intact reports whether all chains have as many rules as were written. The caller holds mu.
func (f *firewall) intact() bool {
	for t, chains := range f.written {
		for name, n := range chains {
			rules, err := f.conn.GetRules(t, &nftables.Chain{Table: t, Name: name})
			if err != nil || len(rules) != n {
				return false
			}
		}
	}
	return true
}

// guard is the table of the bridge: a port sends IPv4 with its own addresses and nothing else. Nobody inside needs ARP, both sides know each other.
func (f *firewall) guard() error {
	senders := f.set(f.bridge, setSenders, typeSender)
	if err := f.conn.AddSet(senders, nil); err != nil {
		return err
	}
	c := f.conn.AddChain(&nftables.Chain{Table: f.bridge, Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300), Policy: policyRef(nftables.ChainPolicyAccept)})
	r := f.rules(c)
	r.add(metaCmp(expr.MetaKeyIIFNAME, expr.CmpOpNeq, []byte(f.name+"v")), verdict(expr.VerdictAccept))
	r.add(metaCmp(expr.MetaKeyPROTOCOL, expr.CmpOpNeq, be16(unix.ETH_P_IP)), verdict(expr.VerdictDrop))
	r.add(exprs(
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)},
		&expr.Payload{DestRegister: reg(4), Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Payload{DestRegister: reg(6), Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Lookup{SourceRegister: reg(0), SetName: senders.Name, SetID: senders.ID},
	), verdict(expr.VerdictAccept))
	r.add(verdict(expr.VerdictDrop))
	return nil
}

func (f *firewall) filter() error {
	forbidden := f.set(f.inet, setForbidden, nftables.TypeIPAddr)
	forbidden.Interval = true
	var bounds []nftables.SetElement
	for _, p := range egress.Forbidden() {
		bounds = append(bounds, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := after(p); end.IsValid() {
			bounds = append(bounds, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	policies := f.set(f.inet, mapPolicies, nftables.TypeIPAddr)
	policies.IsMap, policies.DataType = true, nftables.TypeVerdict
	ports := f.set(f.inet, mapPorts, typePort)
	ports.IsMap, ports.DataType = true, typeTarget
	meters := map[string]*nftables.Set{}
	for _, name := range []string{setRates, setAtOnce, setAsking, setPackets, setQuestions} {
		m := f.set(f.inet, name, nftables.TypeIPAddr)
		m.Dynamic, m.Size, m.HasTimeout = true, 1<<16, name != setAtOnce && name != setAsking
		meters[name] = m
	}
	errs := []error{f.conn.AddSet(forbidden, bounds), f.conn.AddSet(policies, nil), f.conn.AddSet(ports, nil)}
	for _, m := range meters {
		errs = append(errs, f.conn.AddSet(m, nil))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	chain := func(name string) rules {
		return f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: name}))
	}
	public := chain(chainPublic)
	public.add(verdict(expr.VerdictAccept))

	newConnection := exprs(ctState(expr.CtStateBitNEW)...)
	rated := meter(meters[setRates], &expr.Limit{Type: expr.LimitTypePkts, Rate: connectionsPerSecond, Unit: expr.LimitTimeSecond, Burst: connectionsBurst, Over: true})
	counted := meter(meters[setAtOnce], &expr.Connlimit{Count: connectionsAtOnce, Flags: expr.NFT_CONNLIMIT_F_INV})
	asking := meter(meters[setAsking], &expr.Connlimit{Count: askingAtOnce, Flags: expr.NFT_CONNLIMIT_F_INV})

	out := chain(chainRunners)
	out.add(metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpNeq, []byte{unix.NFPROTO_IPV4}), verdict(expr.VerdictDrop))
	out.add(exprs(ctState(expr.CtStateBitINVALID)...), verdict(expr.VerdictDrop))
	out.add(metaCmp(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(f.name)), reject())
	out.add(answer(), verdict(expr.VerdictAccept)) // also to a client in a private range that came through an exposed port
	out.add(metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{unix.IPPROTO_TCP}),
		meter(meters[setPackets], &expr.Limit{Type: expr.LimitTypePkts, Rate: packetsPerSecond, Unit: expr.LimitTimeSecond, Burst: packetsBurst, Over: true}), verdict(expr.VerdictDrop))
	out.add(exprs(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)...), verdict(expr.VerdictAccept))
	out.add(exprs(daddr(reg(0)), &expr.Lookup{SourceRegister: reg(0), SetName: forbidden.Name, SetID: forbidden.ID}), reject())
	out.add(metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}), dport(25), reject()) // mail that nobody asked for
	out.add(newConnection, rated, verdict(expr.VerdictDrop))
	out.add(newConnection, counted, verdict(expr.VerdictDrop))
	out.add(exprs(saddr(reg(0)), &expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: policies.Name, SetID: policies.ID}))
	out.add(reject())

	in := chain(chainToRunner)
	in.add(exprs(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)...), verdict(expr.VerdictAccept))
	in.add(translated(), verdict(expr.VerdictAccept))
	in.add(verdict(expr.VerdictDrop))

	node := chain(chainNode)
	node.add(metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpNeq, []byte{unix.NFPROTO_IPV4}), verdict(expr.VerdictDrop))
	node.add(answer(), verdict(expr.VerdictAccept))
	node.add(exprs(ctState(expr.CtStateBitINVALID)...), verdict(expr.VerdictDrop))
	asked := match(exprs(daddr(reg(0)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: f.nameserver.AsSlice()}))
	node.add(asked, metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_UDP}), dport(53),
		meter(meters[setQuestions], &expr.Limit{Type: expr.LimitTypePkts, Rate: questionsPerSecond, Unit: expr.LimitTimeSecond, Burst: questionsBurst, Over: true}), verdict(expr.VerdictDrop))
	node.add(asked, metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_UDP}), dport(53), verdict(expr.VerdictAccept))
	node.add(asked, metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}), dport(53), newConnection, rated, verdict(expr.VerdictDrop))
	node.add(asked, metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}), dport(53), newConnection, asking, verdict(expr.VerdictDrop))
	node.add(asked, metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}), dport(53), verdict(expr.VerdictAccept))
	node.add(reject())

	forward := f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: policyRef(nftables.ChainPolicyAccept)}))
	forward.add(metaCmp(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(f.name)), jump(chainRunners))
	forward.add(metaCmp(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(f.name)), jump(chainToRunner))
	input := f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: policyRef(nftables.ChainPolicyAccept)}))
	input.add(metaCmp(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(f.name)), jump(chainNode))
	return nil
}

// translate maps ports of the node, for whoever is no runner, and hides runners behind the node's address.
func (f *firewall) translate() error {
	mapped := f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: chainMapped}))
	mapped.add(metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4}), exprs(
		&expr.Fib{Register: reg(0), FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: native32(unix.RTN_LOCAL)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
		&expr.Payload{DestRegister: reg(1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(4), IsDestRegSet: true, SetName: mapPorts},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(4), RegProtoMin: reg(5), Specified: true},
	))
	prerouting := f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: "prerouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest}))
	prerouting.add(metaCmp(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(f.name)), verdict(expr.VerdictReturn))
	prerouting.add(jump(chainMapped))
	output := f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest}))
	// A packet from 127.0.0.1 cannot leave by the bridge, and letting it would open the loopback interface to runners.
	output.add(metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4}),
		within(daddr(reg(0)), netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpEq), verdict(expr.VerdictReturn))
	output.add(jump(chainMapped))
	postrouting := f.rules(f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}))
	postrouting.add(metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4}), within(saddr(reg(0)), f.ranges, expr.CmpOpEq),
		metaCmp(expr.MetaKeyOIFNAME, expr.CmpOpNeq, []byte(f.name)), exprs(&expr.Masq{}))
	return nil
}

// admit puts a member's elements, and its allow list if it is the first to have it, into the transaction being made. The caller holds mu.
func (f *firewall) admit(m member) error {
	to := &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainPublic}
	if !m.policy.Open() {
		l, err := f.list(m.policy)
		if err != nil {
			return err
		}
		l.members++
		to.Chain = l.chain
	}
	f.members[m.addr] = m
	el := f.elements(m, to)
	errs := make([]error, 0, len(el))
	for _, e := range el {
		errs = append(errs, f.conn.SetAddElements(e.set, e.elements))
	}
	return errors.Join(errs...)
}

type filled struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

func (f *firewall) elements(m member, to *expr.Verdict) []filled {
	senders := &nftables.Set{Table: f.bridge, Name: setSenders, KeyType: typeSender}
	policies := &nftables.Set{Table: f.inet, Name: mapPolicies, KeyType: nftables.TypeIPAddr, IsMap: true, DataType: nftables.TypeVerdict}
	all := []filled{
		{senders, []nftables.SetElement{{Key: concat(name16(m.port), mac(m.addr), m.addr.AsSlice())}}},
		{policies, []nftables.SetElement{{Key: m.addr.AsSlice(), VerdictData: to}}},
	}
	var mapped []nftables.SetElement
	for _, p := range m.ports {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			mapped = append(mapped, nftables.SetElement{Key: concat([]byte{proto}, be16(p.Host)), Val: concat(m.addr.AsSlice(), be16(p.To))})
		}
	}
	if len(mapped) > 0 {
		all = append(all, filled{&nftables.Set{Table: f.inet, Name: mapPorts, KeyType: typePort, IsMap: true, DataType: typeTarget}, mapped})
	}
	return all
}

// list is the allow list of a policy, made if nobody has it yet. The caller holds mu.
func (f *firewall) list(p egress.Policy) (*allowList, error) {
	key := p.String()
	if l := f.policies[key]; l != nil {
		return l, nil
	}
	n := f.id()
	l := &allowList{chain: fmt.Sprintf("allow_%d", n), learned: map[string]time.Time{}}
	l.any = f.set(f.inet, fmt.Sprintf("names_%d", n), nftables.TypeIPAddr)
	l.ports = f.set(f.inet, fmt.Sprintf("services_%d", n), typeDest)
	for _, s := range []*nftables.Set{l.any, l.ports} {
		s.HasTimeout, s.Size = true, learnedPerPolicy
		if err := f.conn.AddSet(s, nil); err != nil {
			return nil, err
		}
	}
	r := rules{conn: f.conn, chain: f.conn.AddChain(&nftables.Chain{Table: f.inet, Name: l.chain})}
	for _, rule := range p.Rules {
		if rule.Name != "" {
			continue
		}
		to := within(daddr(reg(0)), rule.Prefix, expr.CmpOpEq)
		if rule.Port == 0 {
			r.add(to, verdict(expr.VerdictAccept))
		} else {
			r.add(to, metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{protoNumber(rule.Proto)}), dport(rule.Port), verdict(expr.VerdictAccept))
		}
	}
	r.add(exprs(daddr(reg(0)), &expr.Lookup{SourceRegister: reg(0), SetName: l.any.Name, SetID: l.any.ID}), verdict(expr.VerdictAccept))
	r.add(exprs(daddr(reg(0)), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(1)},
		&expr.Payload{DestRegister: reg(2), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg(0), SetName: l.ports.Name, SetID: l.ports.ID}), verdict(expr.VerdictAccept))
	r.add(reject())
	f.policies[key] = l
	return l, nil
}

func protoNumber(name string) byte {
	if name == egress.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// add lets a runner out, and in what is mapped to it.
func (f *firewall) add(m member) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members == nil {
		return errors.New("the tables of nftables are not installed")
	}
	fresh := f.policies[m.policy.String()] == nil
	err := f.admit(m)
	if err == nil {
		if err = f.conn.Flush(); err == nil {
			return nil
		}
	}
	delete(f.members, m.addr)
	if l := f.policies[m.policy.String()]; l != nil {
		if l.members--; fresh {
			delete(f.policies, m.policy.String())
		}
	}
	return fmt.Errorf("put %s into the tables of nftables: %w", m.addr, err)
}

// remove takes all of that back. What is not there is no error.
func (f *firewall) remove(a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.members[a]
	if !ok {
		return nil
	}
	for _, e := range f.elements(m, nil) {
		for i := range e.elements { // the key is enough
			e.elements[i].Val = nil
		}
		if err := f.conn.SetDeleteElements(e.set, e.elements); err != nil {
			return err
		}
	}
	key := m.policy.String()
	l := f.policies[key]
	if l != nil && l.members == 1 {
		f.conn.DelChain(&nftables.Chain{Table: f.inet, Name: l.chain})
		f.conn.DelSet(l.any)
		f.conn.DelSet(l.ports)
	}
	err := f.conn.Flush()
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take %s out of the tables of nftables: %w", a, err)
	}
	delete(f.members, a)
	if err != nil { // something is missing, and the transaction was no transaction: somebody else has been at the tables
		return f.build(f.members)
	}
	if l != nil {
		if l.members--; l.members == 0 {
			delete(f.policies, key)
		}
	}
	return nil
}

// learn lets the runners of a policy reach an address that an allowed name stands for, for a while.
func (f *firewall) learn(p egress.Policy, rules []egress.Rule, addrs []netip.Addr, now time.Time, ttl time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.policies[p.String()]
	if l == nil {
		return errors.New("nobody has this allow list any more")
	}
	type entry struct {
		set *nftables.Set
		key []byte
	}
	var wanted []entry
	for _, a := range addrs {
		for _, r := range rules {
			if r.Port == 0 {
				wanted = append(wanted, entry{l.any, a.AsSlice()})
			} else {
				wanted = append(wanted, entry{l.ports, concat(a.AsSlice(), []byte{protoNumber(r.Proto)}, be16(r.Port))})
			}
		}
	}
	add := func(renew bool) error {
		for _, e := range wanted {
			until, known := l.learned[e.set.Name+string(e.key)]
			switch {
			case known && until.Sub(now) > ttl/2:
				continue
			case known && until.After(now) && renew: // a time that runs is not set anew by adding again
				if err := f.conn.SetDeleteElements(e.set, []nftables.SetElement{{Key: e.key}}); err != nil {
					return err
				}
			}
			if err := f.conn.SetAddElements(e.set, []nftables.SetElement{{Key: e.key, Timeout: ttl}}); err != nil {
				return err
			}
		}
		return f.conn.Flush()
	}
	err := add(true)
	if errors.Is(err, unix.ENOENT) { // its time was over this moment
		err = add(false)
	}
	if err != nil {
		return fmt.Errorf("allow what a name stands for: %w", err)
	}
	for k, until := range l.learned {
		if until.Before(now) {
			delete(l.learned, k)
		}
	}
	for _, e := range wanted {
		k := e.set.Name + string(e.key)
		if until, known := l.learned[k]; !known || until.Sub(now) <= ttl/2 {
			l.learned[k] = now.Add(ttl)
		}
	}
	return nil
}

// uninstall removes the tables.
func (f *firewall) uninstall() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range []*nftables.Table{f.inet, f.bridge} {
		f.conn.AddTable(t)
		f.conn.DelTable(t)
	}
	f.policies, f.members, f.written = nil, nil, nil
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("remove the tables %q of nftables: %w", f.name, err)
	}
	return nil
}

// strangers names the chains of others that drop by default what runners send: accepting in a table of ours does not overrule them.
func (f *firewall) strangers() (dropping []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	chains, err := f.conn.ListChains()
	if err != nil {
		return nil
	}
	for _, c := range chains {
		if c.Table.Name != f.name && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop && c.Hooknum != nil &&
			(*c.Hooknum == *nftables.ChainHookForward || *c.Hooknum == *nftables.ChainHookInput) {
			dropping = append(dropping, c.Table.Name+"/"+c.Name)
		}
	}
	return dropping
}

// rules adds rules to one chain.
type rules struct {
	conn    *nftables.Conn
	chain   *nftables.Chain
	written map[string]int // nil = not counted
}

func (f *firewall) rules(c *nftables.Chain) rules { return rules{f.conn, c, f.written[c.Table]} }

func (r rules) add(parts ...[]expr.Any) {
	if r.written != nil {
		r.written[r.chain.Name]++
	}
	r.conn.AddRule(&nftables.Rule{Table: r.chain.Table, Chain: r.chain, Exprs: match(parts...)})
}

func match(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func exprs(e ...expr.Any) []expr.Any { return e }

// reg is the n-th register of four bytes.
func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

func verdict(k expr.VerdictKind) []expr.Any { return exprs(&expr.Verdict{Kind: k}) }

func jump(chain string) []expr.Any {
	return exprs(&expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
}

// reject says no at once: a program that is not allowed out learns it, and does not wait.
func reject() []expr.Any {
	return exprs(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
}

// metaCmp compares as many bytes as are given: the beginning of a name.
func metaCmp(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return exprs(&expr.Meta{Key: key, Register: reg(0)}, &expr.Cmp{Op: op, Register: reg(0), Data: data})
}

func ctState(bits uint32) []expr.Any {
	return exprs(&expr.Ct{Key: expr.CtKeySTATE, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native32(bits), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native32(0)})
}

// answer matches what belongs to a connection that others opened.
func answer() []expr.Any {
	return match(exprs(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg(0)}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{1}}),
		ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))
}

// translated matches what came to a mapped port.
func translated() []expr.Any {
	const statusDNAT = 1 << 5 // IPS_DST_NAT
	return exprs(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native32(statusDNAT), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native32(0)})
}

func meter(s *nftables.Set, limit expr.Any) []expr.Any {
	d := &expr.Dynset{SrcRegKey: reg(0), SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{limit}}
	if s.HasTimeout {
		d.Operation, d.Timeout = unix.NFT_DYNSET_OP_UPDATE, time.Minute
	}
	return exprs(saddr(reg(0)), d)
}

func saddr(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func daddr(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

func within(load expr.Any, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return exprs(load, &expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg(0), Data: p.Addr().AsSlice()})
}

func dport(n uint16) []expr.Any {
	return exprs(&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: be16(n)})
}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func native32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func name16(s string) []byte {
	b := make([]byte, 16)
	copy(b, s)
	return b
}

// concat pads each part to whole registers.
func concat(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
		for len(all)%4 != 0 {
			all = append(all, 0)
		}
	}
	return all
}

// after is the first address beyond a prefix; the zero value where there is none.
func after(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	n := uint64(binary.BigEndian.Uint32(b[:])) + 1<<(32-p.Bits())
	if n > 0xffffffff {
		return netip.Addr{}
	}
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

func policyRef(p nftables.ChainPolicy) *nftables.ChainPolicy { return &p }
