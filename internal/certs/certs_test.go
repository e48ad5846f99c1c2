package certs_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rockpool/internal/certs"
)

func write(t *testing.T, dir string, ca certs.Pair, r certs.Request) certs.Files {
	t.Helper()
	p, err := certs.Create(ca, r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, data := range map[string][]byte{f.CA: ca.Cert, f.Cert: p.Cert, f.Key: p.Key} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func authority(t *testing.T) certs.Pair {
	t.Helper()
	ca, err := certs.CreateCA("", time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func load(t *testing.T, ca certs.Pair, r certs.Request, strict bool) *certs.Store {
	t.Helper()
	s, err := certs.Load(write(t, t.TempDir(), ca, r), "", strict)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// meet makes one connection and returns the error of either end.
func meet(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	result := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err != nil {
			a.Close()
		}
		result <- err
	}()
	c := tls.Client(b, client)
	err := c.Handshake()
	if err != nil {
		b.Close()
	} else { // in TLS 1.3 a client learns of its refusal by reading
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1))
	}
	if serr := <-result; serr != nil {
		return serr
	}
	return err
}

func TestWhoMaySpeakAsAServer(t *testing.T) {
	ca, other := authority(t), authority(t)
	server := certs.Request{Role: certs.Server}
	for _, c := range []struct {
		name   string
		ca     certs.Pair
		peer   certs.Request
		strict bool
		want   string
	}{
		{"another server", ca, server, true, ""},
		{"a node, where names are verified", ca, certs.Request{Role: certs.Client}, true, "does not name a server"},
		{"a node, where names are not verified", ca, certs.Request{Role: certs.Client}, false, "does not name a server"},
		{"a person", ca, certs.Request{Role: certs.CLI}, false, "does not name a server"},
		{"a server of another region", ca, certs.Request{Role: certs.Server, Region: "moon"}, true, "does not name a server"},
		{"a server of another authority", other, server, true, "unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, theirs := load(t, ca, server, c.strict), load(t, c.ca, c.peer, false)
			err := meet(t, ours.RPCListener(), theirs.RPCDialer())
			if c.want == "" && err != nil || c.want != "" && err == nil {
				t.Fatalf("it speaks Raft: %v, want %q", err, c.want)
			}
			if c.name == "a server of another authority" || c.want == "" {
				return
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("the reason is %v, want %q", err, c.want)
			}
			if c.peer.Role != certs.CLI { // it cannot even listen
				if err := meet(t, theirs.HTTPListener(false), ours.RPCDialer()); err == nil {
					t.Error("it is taken for a server when it listens")
				}
			}
		})
	}
}

func TestNoCertificateNoConnection(t *testing.T) {
	s := load(t, authority(t), certs.Request{Role: certs.Server}, true)
	bare := &tls.Config{InsecureSkipVerify: true}
	if meet(t, s.RPCListener(), bare) == nil {
		t.Error("RPC without a certificate")
	}
	if meet(t, s.HTTPListener(true), bare) == nil {
		t.Error("HTTPS without a certificate where one is asked for")
	}
	if err := meet(t, s.HTTPListener(false), bare); err != nil {
		t.Errorf("HTTPS without a certificate where none is asked for: %v", err)
	}
	if meet(t, s.HTTPListener(false), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}) == nil {
		t.Error("TLS 1.2 is spoken")
	}
}

func TestReload(t *testing.T) {
	dir, ca := t.TempDir(), authority(t)
	f := write(t, dir, ca, certs.Request{Role: certs.Server})
	s, err := certs.Load(f, "", true)
	if err != nil {
		t.Fatal(err)
	}
	listener, old := s.RPCListener(), s.Leaf()
	fresh := authority(t)
	write(t, dir, fresh, certs.Request{Role: certs.Server})
	peer := load(t, fresh, certs.Request{Role: certs.Server}, true)
	if meet(t, listener, peer.RPCDialer()) == nil {
		t.Error("the new authority is known before the reload")
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if s.Leaf() == old {
		t.Error("the certificate is the old one")
	}
	if err := meet(t, listener, peer.RPCDialer()); err != nil {
		t.Errorf("after the reload: %v", err)
	}
	if err := os.WriteFile(f.Cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.Reload() == nil {
		t.Error("a broken file is no error")
	}
	if err := meet(t, listener, peer.RPCDialer()); err != nil {
		t.Errorf("a broken file took the old certificate away: %v", err)
	}
}

func TestACertificateNeverOutlivesItsAuthority(t *testing.T) {
	now := time.Now()
	ca, err := certs.CreateCA("", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := load(t, ca, certs.Request{Role: certs.Server}, true)
	if s.Leaf().NotAfter.After(now.Add(time.Hour)) {
		t.Errorf("it is valid until %v", s.Leaf().NotAfter)
	}
	if _, err := certs.Create(ca, certs.Request{Role: "boss"}, now); err == nil {
		t.Error("an unknown role is no error")
	}
}
