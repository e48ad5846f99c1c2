//go:build linux

package network

import (
	"testing"
	"time"
)

func TestARunnerReachesThePublicAndNothingElse(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{})
	neighbour := w.attach(m, "two", Request{Ports: ports(20001, 8080)})
	w.serveTCP(neighbour.ns, ":8080")
	for _, c := range []struct{ what, to string }{
		{"a public address", "203.0.113.10:80"},
		{"another one", "198.51.100.7:443"},
	} {
		said, err := connect(r.ns, c.to, time.Second)
		if err != nil {
			t.Errorf("%s (%s) cannot be reached: %v", c.what, c.to, err)
		} else if said != nodeAddress {
			t.Errorf("%s sees %s and not the address of the node", c.what, said)
		}
	}
	for _, c := range []struct{ what, to string }{
		{"the API of the node at the bridge", "172.30.64.1:4646"},
		{"the gateway at the bridge", "172.30.64.1:7200"},
		{"the API of the node at its address", nodeAddress + ":4646"},
		{"a shell of the node", nodeAddress + ":22"},
		{"the node's loopback addresses", "127.0.0.1:4646"},
		{"a metadata service", "169.254.169.254:80"},
		{"a cloud's platform service", "168.63.129.16:80"},
		{"a private address", "10.1.2.3:80"},
		{"another private address", "192.168.7.7:443"},
		{"a neighbour", neighbour.at.Address + ":8080"},
		{"a neighbour by its mapped port", nodeAddress + ":20001"},
		{"a neighbour by its mapped port at the bridge", "172.30.64.1:20001"},
		{"an address of the range that nobody has", "172.30.70.9:80"},
		{"a mail server", "203.0.113.10:25"},
		{"a metadata service by IPv6", "[fd00:ec2::254]:80"},
		{"the node by IPv6", "[fe80::1%eth0]:4646"},
		{"broadcast", "255.255.255.255:80"},
	} {
		if err := r.reaches(c.to); err == nil {
			t.Errorf("%s (%s) can be reached", c.what, c.to)
		}
	}
}
