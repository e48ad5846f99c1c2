package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// Pair is a certificate and its key, as PEM.
type Pair struct{ Cert, Key []byte }

// Lifetimes of what is made where nobody says another one.
const (
	CALifetime   = 5 * 365 * 24 * time.Hour
	CertLifetime = 365 * 24 * time.Hour
)

// CreateCA makes an authority (ECDSA on P-256) that may sign certificates and nothing else.
func CreateCA(name string, now time.Time, lifetime time.Duration) (Pair, error) {
	if name == "" {
		name = "Rockpool Agent CA"
	}
	if lifetime <= 0 {
		lifetime = CALifetime
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make the authority's key: %w", err)
	}
	serial, err := serial()
	if err != nil {
		return Pair{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"Rockpool"}},
		NotBefore: now.Add(-skew), NotAfter: now.Add(lifetime),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	return sign(t, t, key, key)
}

// Request says what a certificate is for.
type Request struct {
	Role     Role
	Region   string        // "" = global
	Names    []string      // more DNS names than the role's own and localhost
	IPs      []net.IP      // more addresses than the loopback ones
	Lifetime time.Duration // 0 = CertLifetime; it never outlives its authority
}

// Create makes a certificate that ca signs. Servers' and nodes' serve both ends of a connection; others only that of a client.
func Create(ca Pair, r Request, now time.Time) (Pair, error) {
	caCert, caKey, err := parse(ca)
	if err != nil {
		return Pair{}, err
	}
	if !slices.Contains([]Role{Server, Client, CLI}, r.Role) {
		return Pair{}, fmt.Errorf("make a certificate: %q is none of the roles server, client and cli", r.Role)
	}
	if r.Lifetime <= 0 {
		r.Lifetime = CertLifetime
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make the certificate's key: %w", err)
	}
	serial, err := serial()
	if err != nil {
		return Pair{}, err
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if r.Role != CLI {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	ends := now.Add(r.Lifetime)
	if ends.After(caCert.NotAfter) {
		ends = caCert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: Name(r.Role, r.Region)},
		NotBefore: now.Add(-skew), NotAfter: ends, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
		DNSNames:    append([]string{Name(r.Role, r.Region), "localhost"}, r.Names...),
		IPAddresses: append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, r.IPs...),
	}
	return sign(t, caCert, key, caKey)
}

const skew = 5 * time.Minute // that clocks may differ by

func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n, nil
}

func sign(t, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, by)
	if err != nil {
		return Pair{}, fmt.Errorf("sign the certificate: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encode the key: %w", err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
	}, nil
}

func parse(p Pair) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	c, _ := pem.Decode(bytes.TrimSpace(p.Cert))
	k, _ := pem.Decode(bytes.TrimSpace(p.Key))
	if c == nil || k == nil {
		return nil, nil, errors.New("read the authority: its certificate or key is no PEM")
	}
	cert, err := x509.ParseCertificate(c.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(k.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority's key: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !cert.IsCA {
		return nil, nil, errors.New("read the authority: it is no certificate authority with an ECDSA key")
	}
	return cert, ec, nil
}
