// Package certs holds the certificates of mutual TLS: it loads and reloads them, says what role a certificate's names give its holder, makes the
// configurations of TLS 1.3 for each listener and dialler, and makes authorities and certificates.
//
// A role is a name in a certificate, as Nomad has it: server.<region>.nomad or client.<region>.nomad, and the same with .rockpool. A certificate that names a
// client never passes for a server's, whatever else is configured.
package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
)

// Role is what a certificate lets its holder be.
type Role string

// Roles.
const (
	Server Role = "server"
	Client Role = "client" // a node
	CLI    Role = "cli"    // a person or program at the HTTP API
)

var domains = []string{"nomad", "rockpool"}

// Name is the name that a role's certificate carries.
func Name(r Role, region string) string {
	return string(r) + "." + cmp.Or(region, "global") + "." + domains[0]
}

// Has reports whether a certificate names the role in the region.
func Has(c *x509.Certificate, r Role, region string) bool {
	return slices.ContainsFunc(domains, func(d string) bool {
		return slices.Contains(c.DNSNames, string(r)+"."+cmp.Or(region, "global")+"."+d)
	})
}

// Files are the PEM files of one party.
type Files struct{ CA, Cert, Key string }

// loaded is one reading of the files.
type loaded struct {
	pool *x509.CertPool
	cert tls.Certificate
}

// Store holds certificates that can be replaced while connections come and go. A connection keeps those it began with.
type Store struct {
	files   Files
	region  string
	strict  bool
	current atomic.Pointer[loaded]
}

// ErrRole is wrapped where a certificate is valid but its holder is not who may speak here.
var ErrRole = errors.New("the certificate does not name a server of this region")

// Load reads the files. With verifyServer whoever speaks as a server must have a certificate that says so; without it any certificate of the authority will
// do that does not name a client.
func Load(f Files, region string, verifyServer bool) (*Store, error) {
	s := &Store{files: f, region: cmp.Or(region, "global"), strict: verifyServer}
	return s, s.Reload()
}

// Reload reads the files again. After an error the old certificates stay.
func (s *Store) Reload() error {
	pem, err := os.ReadFile(s.files.CA)
	if err != nil {
		return fmt.Errorf("read the certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("read the certificate authority: %s holds no PEM certificate", s.files.CA)
	}
	cert, err := tls.LoadX509KeyPair(s.files.Cert, s.files.Key)
	if err != nil {
		return fmt.Errorf("read certificate %s with key %s: %w", s.files.Cert, s.files.Key, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("read certificate %s: %w", s.files.Cert, err)
		}
	}
	s.current.Store(&loaded{pool, cert})
	return nil
}

// Leaf is the certificate in use.
func (s *Store) Leaf() *x509.Certificate { return s.current.Load().cert.Leaf }

// base is what all configurations share. The authorities are looked up for each connection, so a reload holds for all later ones.
func (s *Store) base() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &s.current.Load().cert, nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.current.Load().cert, nil
		},
		SessionTicketsDisabled: true, // a resumed session would outlive a reload
	}
}

// listening asks clients for a certificate of the current authority as auth says, and has check look at it.
func (s *Store) listening(auth tls.ClientAuthType, check func(*x509.Certificate) error) *tls.Config {
	outer := s.base()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := s.base()
		c.ClientAuth, c.ClientCAs = auth, s.current.Load().pool
		c.NextProtos = outer.NextProtos
		if check != nil {
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				if len(cs.PeerCertificates) == 0 {
					return errors.New("no certificate was shown")
				}
				return check(cs.PeerCertificates[0])
			}
		}
		return c, nil
	}
	return outer
}

// server refuses a certificate whose holder may not speak as a server.
func (s *Store) server(c *x509.Certificate) error {
	if Has(c, Server, s.region) {
		return nil
	}
	if s.strict || Has(c, Client, s.region) || Has(c, CLI, s.region) {
		return fmt.Errorf("%w: it is for %q", ErrRole, c.DNSNames)
	}
	return nil
}

// RPCListener is for the listener that servers reach one another by: mutual TLS, servers only.
func (s *Store) RPCListener() *tls.Config {
	return s.listening(tls.RequireAndVerifyClientCert, s.server)
}

// RPCDialer is for reaching another server's RPC listener. Names of hosts play no part: servers are known by their role.
func (s *Store) RPCDialer() *tls.Config { return s.dialer(s.server) }

// HTTPListener is for the HTTP API; with verifyClients it is for holders of a certificate only.
func (s *Store) HTTPListener(verifyClients bool) *tls.Config {
	c := s.listening(tls.VerifyClientCertIfGiven, nil)
	if verifyClients {
		c = s.listening(tls.RequireAndVerifyClientCert, nil)
	}
	c.NextProtos = []string{"http/1.1"} // WebSockets need it
	return c
}

// HTTPDialer is for nodes and others that call servers' HTTP API. The server's role is what is verified, in strict stores by its name.
func (s *Store) HTTPDialer() *tls.Config {
	c := s.dialer(s.server)
	c.NextProtos = []string{"http/1.1"}
	return c
}

func (s *Store) dialer(check func(*x509.Certificate) error) *tls.Config {
	c := s.base()
	// The chain is verified below, against the authorities of this moment; what crypto/tls would check besides is the host's name.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("no certificate was shown")
		}
		between := x509.NewCertPool()
		for _, p := range cs.PeerCertificates[1:] {
			between.AddCert(p)
		}
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
			Roots: s.current.Load().pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		if err != nil {
			return fmt.Errorf("verify the server's certificate: %w", err)
		}
		return check(cs.PeerCertificates[0])
	}
	return c
}
