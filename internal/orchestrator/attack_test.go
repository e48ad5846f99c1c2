package orchestrator_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"rockpool/internal/certs"
	"rockpool/internal/orchestrator/peer"
)

// TestStrangersAtTheServersPort asks everything of the port that only servers may speak to.
func TestStrangersAtTheServersPort(t *testing.T) {
	p := newPKI(t)
	s := p.server(t, "one", 1)
	s.start(t)
	defer s.stop()
	if err := s.server.WaitLeader(t.Context()); err != nil {
		t.Fatal(err)
	}
	address := s.cfg.Cluster.RPCAddress
	dial := func(conf *tls.Config) (*peer.Network, error) {
		n, err := peer.Listen(peer.Config{Address: "127.0.0.1:0", Dialer: conf})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return n, nil
	}
	store := func(role certs.Role, ca *pki, strict bool) *certs.Store {
		st, err := certs.Load(ca.files(t, role), "", strict)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	other := newPKI(t)
	for _, c := range []struct {
		name string
		conf *tls.Config
		in   bool
	}{
		{"a server", store(certs.Server, p, true).RPCDialer(), true},
		{"a node", store(certs.Client, p, true).RPCDialer(), false},
		{"a person", store(certs.CLI, p, true).RPCDialer(), false},
		{"nobody", &tls.Config{InsecureSkipVerify: true}, false},
		{"a server of another cluster", func() *tls.Config {
			conf := store(certs.Server, other, true).RPCDialer().Clone()
			conf.VerifyConnection = nil // the stranger does not mind whom it speaks to
			return conf
		}(), false},
		{"somebody without TLS", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := dial(c.conf)
			if err != nil {
				t.Fatal(err)
			}
			for _, protocol := range []peer.Protocol{peer.Raft, peer.HTTP} {
				if got := spoken(t, n, protocol, address, c.conf == nil); got != c.in {
					t.Errorf("protocol %d is spoken: %v, want %v", protocol, got, c.in)
				}
			}
		})
	}
	// On the HTTP API nothing of what servers ask one another is served, whatever a header says.
	for _, path := range []string{"/v1/peer/progress", "/v1/peer/bootstrap"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.http.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Nomad-Token", "root")
		r.Header.Set("X-Rockpool-Forwarded", "true")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %d on the HTTP API", path, resp.StatusCode)
		}
	}
	// A server that speaks for a caller has no rights but the caller's.
	n, err := dial(store(certs.Server, p, true).RPCDialer())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: n.Transport(), Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v1/jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a forwarded request without a token is answered %d", resp.StatusCode)
	}
}

// spoken reports whether the port answers in a protocol.
func spoken(t *testing.T, n *peer.Network, protocol peer.Protocol, address string, plain bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := n.Dial(ctx, protocol, address)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if protocol == peer.HTTP {
		if _, err := io.WriteString(c, "GET /v1/peer/progress HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false
		}
		b := make([]byte, 12)
		_, err := io.ReadFull(c, b)
		return err == nil && strings.HasPrefix(string(b), "HTTP/1.1 200")
	}
	if plain { // enough that it can be seen to be no TLS
		_, _ = c.Write(make([]byte, 64))
	}
	// Raft says nothing before it is asked: an open connection is silent, a refused one ends.
	_, err = c.Read(make([]byte, 1))
	ne, ok := err.(net.Error) //nolint:errorlint // what a connection returns
	return ok && ne.Timeout()
}
