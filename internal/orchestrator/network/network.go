package network

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/network/egress"
)

// Modes of a network; those of CNI configurations begin with ModeCNI.
const (
	ModeBridge = "bridge"
	ModeCNI    = "cni/"
)

// Config says what the networks of one node are.
type Config struct {
	Dir        string         // of leases and namespaces, private to one agent
	Name       string         // begins the names of the bridges, the interfaces and the tables; two to eight of [a-z0-9]
	Range      netip.Prefix   // IPv4, /16 to /29, for the runners on bridges; the zero value = there is no bridge
	DNS        []string       // name servers that questions are passed on to, addresses with an optional port; empty = the node's own
	CNIConfigs string         // directory of configurations; "" = there are none
	CNIPlugins string         // directories of plugins, separated by colons
	NodeNS     string         // path of the namespace that is the node's; "" = that of the process
	Log        logging.Logger // nil = discard
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]{1,7}$`)

func (c *Config) validate() error {
	switch {
	case !nameForm.MatchString(c.Name):
		return fmt.Errorf("network name %q: two to eight lower case letters and digits are wanted", c.Name)
	case !c.Range.IsValid():
		return nil
	case !c.Range.Addr().Is4() || c.Range.Bits() < 16 || c.Range.Bits() > 29 || c.Range != c.Range.Masked():
		return fmt.Errorf("network range %s: an IPv4 prefix from /16 to /29 is wanted, such as 172.30.64.0/20", c.Range)
	}
	return nil
}

// Request is what an allocation asks for.
type Request struct {
	Mode      string
	Hostname  string     // "" = the driver's choice
	DNS       *model.DNS // nil = the node's name service as it is
	Ports     []model.AllocatedPort
	Egress    string // what egress.Parse reads
	Bandwidth string // what egress.ParseBandwidth reads
}

// Attachment is what an allocation got.
type Attachment struct {
	NetNS       string // path
	Interface   string // inside
	Address     string // of the interface, without a mask
	Hostname    string
	Nameservers []string
	Searches    []string
	Options     []string
}

// terms are a request, checked.
type terms struct {
	policy egress.Policy
	mbit   int
	asks   []netip.AddrPort // the group's own name servers
}

var (
	hostForm   = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?$`)
	searchForm = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,253}$`)
	optionForm = regexp.MustCompile(`^[a-z0-9:-]{1,64}$`)
)

// Check reports what of a request could not be given on any node. Its errors are of kind fault.Invalid.
func (r *Request) Check() error {
	_, err := r.terms()
	return err
}

func (r *Request) terms() (t terms, err error) {
	if t.policy, err = egress.Parse(r.Egress); err != nil {
		return t, fault.New(fault.Invalid, "%s: %v", egress.MetaAllow, err)
	}
	if t.mbit, err = egress.ParseBandwidth(r.Bandwidth); err != nil {
		return t, fault.New(fault.Invalid, "%s: %v", egress.MetaBandwidth, err)
	}
	if strings.HasPrefix(r.Mode, ModeCNI) && (!t.policy.Open() || t.mbit > 0) {
		return t, fault.New(fault.Invalid, "%s and %s work in network mode %q; in %q the configuration says what runners reach",
			egress.MetaAllow, egress.MetaBandwidth, ModeBridge, r.Mode)
	}
	if r.Hostname != "" && !hostForm.MatchString(r.Hostname) {
		return t, fault.New(fault.Invalid, "network hostname %q: at most 64 letters, digits, dots and hyphens are wanted", r.Hostname)
	}
	if r.DNS == nil {
		return t, nil
	}
	for _, s := range r.DNS.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return t, fault.New(fault.Invalid, "network dns server %q is not an address", s)
		}
		if r.Mode == ModeBridge && !egress.Public(a) {
			return t, fault.New(fault.Invalid, "network dns server %s is not a public IPv4 address, and runners reach only those: "+
				"let the nodes ask it, with their own setting of name servers (orchestrator.network.dns)", s)
		}
		t.asks = append(t.asks, netip.AddrPortFrom(a, 53))
	}
	if len(t.asks) > 3 || len(r.DNS.Searches) > 6 || len(r.DNS.Options) > 16 {
		return t, fault.New(fault.Invalid, "network dns: at most 3 servers, 6 search domains and 16 options are allowed")
	}
	for _, s := range r.DNS.Searches {
		if !searchForm.MatchString(s) {
			return t, fault.New(fault.Invalid, "network dns search domain %q is not a domain", s)
		}
	}
	for _, s := range r.DNS.Options {
		if !optionForm.MatchString(s) {
			return t, fault.New(fault.Invalid, "network dns option %q is not one of resolv.conf", s)
		}
	}
	return t, nil
}

// mappings are the ports that lead to a runner.
func mappings(ports []model.AllocatedPort) (all []mapping) {
	for _, p := range ports {
		to := p.To
		if to <= 0 {
			to = p.Value
		}
		all = append(all, mapping{Host: uint16(p.Value), To: uint16(to)})
	}
	return all
}

// mapping is one port of the node that leads to a runner, for TCP and UDP.
type mapping struct{ Host, To uint16 }

// The fences, and the part of the containment table that they are in.
const (
	wall        = "Network"
	FenceBridge = "network.bridge"
	FenceRules  = "network.nftables"
)
