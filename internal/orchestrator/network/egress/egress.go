// Package egress is the language in which an environment says what its runners may reach outside, and the list of what no runner ever reaches.
package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Keys of a task group's meta that carry what this package parses.
const (
	MetaAllow     = "rockpool_egress"
	MetaBandwidth = "rockpool_bandwidth"
)

// Bounds of a list and of a bandwidth in Mbit/s.
const (
	MaxRules     = 64
	MaxLength    = 4096
	MaxBandwidth = 100_000
)

// Protocols of a rule.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Rule allows one destination: either a prefix or a name.
type Rule struct {
	Prefix netip.Prefix // IPv4; invalid when the rule has a name
	Name   string       // lower case, without a final dot; "*.example.org" means every name below example.org, and not itself
	Port   uint16       // 0 = all
	Proto  string       // TCP or UDP; "" when there is no port: every protocol
}

// Policy is an allow list. The zero value allows every public address.
type Policy struct{ Rules []Rule }

// Open reports whether every public address may be reached.
func (p Policy) Open() bool { return len(p.Rules) == 0 }

// String is the list in the form that Parse reads, sorted and without repetitions: equal policies have equal strings.
func (p Policy) String() string {
	all := make([]string, 0, len(p.Rules))
	for _, r := range p.Rules {
		all = append(all, r.String())
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ",")
}

// String is the rule in the form that Parse reads.
func (r Rule) String() string {
	s := r.Name
	if s == "" {
		s = r.Prefix.String()
	}
	if r.Port == 0 {
		return s
	}
	return fmt.Sprintf("%s:%d/%s", s, r.Port, r.Proto)
}

// ByName yields the rules that a name meets. The name is lower case and has no final dot.
func (p Policy) ByName(name string) []Rule {
	var met []Rule
	for _, r := range p.Rules {
		if below, wild := strings.CutPrefix(r.Name, "*"); r.Name != "" && (name == r.Name || wild && len(name) > len(below) && strings.HasSuffix(name, below)) {
			met = append(met, r)
		}
	}
	return met
}

// Parse reads a list: prefixes, addresses and names, separated by commas, each with an optional port (":443", which is TCP, or ":53/udp").
// The error names the entry and what is wrong with it.
func Parse(list string) (Policy, error) {
	var p Policy
	if len(list) > MaxLength {
		return p, fmt.Errorf("the list has %d bytes, at most %d are allowed", len(list), MaxLength)
	}
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		r, err := parseRule(entry)
		if err != nil {
			return Policy{}, fmt.Errorf("entry %q: %w", entry, err)
		}
		if p.Rules = append(p.Rules, r); len(p.Rules) > MaxRules {
			return Policy{}, fmt.Errorf("there are more than %d entries", MaxRules)
		}
	}
	if p.Open() && strings.Trim(list, ", \t") == "" && strings.Contains(list, ",") {
		return p, fmt.Errorf("the list %q has no entry: leave it out to allow every public address", list)
	}
	return p, nil
}

func parseRule(entry string) (r Rule, err error) {
	host, port, hasPort := strings.Cut(entry, ":")
	if strings.Count(entry, ":") > 1 {
		return r, fmt.Errorf("runners have IPv4 only: an IPv6 address cannot be allowed")
	}
	if hasPort {
		number, proto, hasProto := strings.Cut(port, "/")
		if !hasProto {
			proto = TCP
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			return r, fmt.Errorf("the port %q is not a number from 1 to 65535", number)
		}
		if proto != TCP && proto != UDP {
			return r, fmt.Errorf("the protocol %q is neither tcp nor udp", proto)
		}
		r.Port, r.Proto = uint16(n), proto
	}
	switch {
	case strings.Contains(host, "/"):
		if r.Prefix, err = netip.ParsePrefix(host); err != nil {
			return r, fmt.Errorf("%q is not a prefix such as 203.0.113.0/24", host)
		}
		if r.Prefix != r.Prefix.Masked() {
			return r, fmt.Errorf("the prefix has bits set beyond its length; %s is meant", r.Prefix.Masked())
		}
	case strings.Trim(host, "0123456789.") == "":
		a, err := netip.ParseAddr(host)
		if err != nil {
			return r, fmt.Errorf("%q is not an address", host)
		}
		r.Prefix = netip.PrefixFrom(a, a.BitLen())
	default:
		r.Name = strings.ToLower(strings.TrimSuffix(host, "."))
		return r, validName(r.Name)
	}
	for _, f := range forbidden {
		if f.Bits() <= r.Prefix.Bits() && f.Contains(r.Prefix.Addr()) {
			return r, fmt.Errorf("%s is not public (%s), and runners reach public addresses only", r.Prefix, f)
		}
	}
	return r, nil
}

func validName(name string) error {
	rest, wild := strings.CutPrefix(name, "*.")
	labels := strings.Split(rest, ".")
	if len(name) > 253 || len(labels) < 2 && !wild {
		return fmt.Errorf("a full name with a dot and of at most 253 bytes is wanted, or an address")
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.HasPrefix(l, "-") || strings.HasSuffix(l, "-") {
			return fmt.Errorf("%q is not a part of a host name", l)
		}
		if i := strings.IndexFunc(l, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
		}); i >= 0 {
			return fmt.Errorf("a host name has letters, digits and hyphens (international ones in their xn-- form, a star only as its first part)")
		}
	}
	return nil
}

// forbidden is what no runner reaches, whatever its environment allows: what is not public, and what cloud providers answer on.
var forbidden = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"), // a cloud's platform service on an address that looks public
	netip.MustParsePrefix("169.254.0.0/16"),   // metadata services
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast
}

// Forbidden lists what no runner reaches, sorted and without overlaps. It must not be changed.
func Forbidden() []netip.Prefix { return forbidden }

// Public reports whether runners may reach an address at all.
func Public(a netip.Addr) bool {
	return a.Is4() && !slices.ContainsFunc(forbidden, func(f netip.Prefix) bool { return f.Contains(a) })
}

// ParseBandwidth reads a bandwidth in Mbit/s; "" is 0, no limit.
func ParseBandwidth(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxBandwidth {
		return 0, fmt.Errorf("the bandwidth %q is not a number of Mbit/s from 1 to %d", s, MaxBandwidth)
	}
	return n, nil
}
