package egress_test

import (
	"net/netip"
	"strings"
	"testing"

	"rockpool/internal/orchestrator/network/egress"
)

func TestParse(t *testing.T) {
	for list, want := range map[string]string{
		"":                               "",
		"  ":                             "",
		"203.0.113.10":                   "203.0.113.10/32",
		"203.0.113.0/24":                 "203.0.113.0/24",
		"0.0.0.0/0":                      "0.0.0.0/0",
		"203.0.113.10:443":               "203.0.113.10/32:443/tcp",
		"203.0.113.0/24:53/udp":          "203.0.113.0/24:53/udp",
		"PyPI.org.":                      "pypi.org",
		"*.PythonHosted.org:443":         "*.pythonhosted.org:443/tcp",
		"b.example, a.example,b.example": "a.example,b.example",
		"xn--bcher-kva.example":          "xn--bcher-kva.example",
		"pypi.org:443,":                  "pypi.org:443/tcp",
	} {
		p, err := egress.Parse(list)
		if err != nil || p.String() != want {
			t.Errorf("%q is %q, %v; want %q", list, p, err, want)
		}
	}
	for list, why := range map[string]string{
		"10.0.0.5":                        "10.0.0.5/32 is not public (10.0.0.0/8)",
		"10.1.0.0/16:443":                 "not public",
		"169.254.169.254":                 "169.254.0.0/16",
		"168.63.129.16":                   "not public",
		"127.0.0.1":                       "not public",
		"100.100.100.200":                 "100.64.0.0/10",
		"203.0.113.1/24":                  "203.0.113.0/24 is meant",
		"203.0.113.0/40":                  "not a prefix",
		"203.0.113":                       "not an address",
		"203.0.113.1:0":                   "not a number from 1 to 65535",
		"203.0.113.1:70000":               "not a number from 1 to 65535",
		"203.0.113.1:80/sctp":             "neither tcp nor udp",
		"2001:db8::1":                     "IPv4 only",
		"localhost":                       "a full name with a dot",
		"a..example":                      `"" is not a part`,
		"-a.example":                      `"-a" is not a part`,
		"a.*.example":                     "a star only as its first part",
		"bücher.example":                  "xn--",
		"a b.example":                     "letters, digits and hyphens",
		strings.Repeat("a", 64) + ".org":  "not a part",
		",,":                              "has no entry",
		strings.Repeat("a.example,", 65):  "more than 64 entries",
		strings.Repeat("a.example,", 500): "at most 4096",
	} {
		if _, err := egress.Parse(list); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.40q: %v, want an error about %q", list, err, why)
		}
	}
}

func TestByName(t *testing.T) {
	p, err := egress.Parse("pypi.org,*.pythonhosted.org:443,*.pypi.org:80,203.0.113.1")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"pypi.org": "pypi.org", "files.pythonhosted.org": "*.pythonhosted.org:443/tcp", "a.b.pythonhosted.org": "*.pythonhosted.org:443/tcp",
		"pythonhosted.org": "", "evilpythonhosted.org": "", "pypi.org.evil.example": "", "test.pypi.org": "*.pypi.org:80/tcp", "203.0.113.1": "", "": "",
	} {
		if got := (egress.Policy{Rules: p.ByName(name)}).String(); got != want {
			t.Errorf("%q meets %q, want %q", name, got, want)
		}
	}
}

func TestPublic(t *testing.T) {
	for a, want := range map[string]bool{
		"1.1.1.1": true, "203.0.113.10": true, "172.15.255.255": true, "172.32.0.0": true, "223.255.255.255": true,
		"10.0.0.0": false, "172.16.0.0": false, "172.31.255.255": false, "192.168.1.1": false, "100.64.0.1": false, "169.254.169.254": false,
		"127.0.0.1": false, "0.0.0.0": false, "224.0.0.1": false, "255.255.255.255": false, "198.18.0.1": false, "192.0.0.192": false,
		"::1": false, "2606:4700::1111": false, "::ffff:10.0.0.1": false,
	} {
		if got := egress.Public(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	all := egress.Forbidden()
	for i := 1; i < len(all); i++ {
		if !all[i-1].Addr().Less(all[i].Addr()) || all[i-1].Overlaps(all[i]) {
			t.Errorf("%s and %s are out of order", all[i-1], all[i])
		}
	}
}

func TestParseBandwidth(t *testing.T) {
	for s, want := range map[string]int{"": 0, "1": 1, "100000": 100000, "0": -1, "-1": -1, "1.5": -1, "100001": -1, "fast": -1} {
		n, err := egress.ParseBandwidth(s)
		if (err != nil) != (want < 0) || err == nil && n != want {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"203.0.113.0/24:53/udp,*.pypi.org:443", "10.0.0.0/8", "::1", "a:b:c", "*.*.x", "0.0.0.0/0:1/tcp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := egress.Parse(s)
		if err != nil {
			return
		}
		again, err := egress.Parse(p.String())
		if err != nil || again.String() != p.String() {
			t.Errorf("%q became %q, and that %q, %v", s, p, again, err)
		}
		for _, r := range p.Rules {
			if r.Name == "" && r.Prefix.IsSingleIP() && !egress.Public(r.Prefix.Addr()) {
				t.Errorf("%q allows %s", s, r.Prefix)
			}
		}
	})
}
