package gateway

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rockpool/internal/api/access"
	"rockpool/internal/certs"
	"rockpool/internal/config"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
)

// The ticks are the test's own, so that nothing waits.
func TestAReplacedCertificateIsNoticed(t *testing.T) {
	ca, err := certs.CreateCA("test", time.Now(), certs.CALifetime)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	write := func(file string, data []byte, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Now().Add(age), time.Now().Add(age)); err != nil {
			t.Fatal(err)
		}
	}
	pair := func() certs.Pair {
		p, err := certs.Create(ca, certs.Request{Role: certs.Server}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	old, next := pair(), pair()
	write(certFile, old.Cert, -time.Hour)
	write(keyFile, old.Key, -time.Hour)
	c, err := loadCertificate(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := access.Load("", "")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{
		certificate: c, tokens: tokens, log: logging.Discard(), telemetry: newTelemetry(func() map[int]metrics.PoolState { return nil }, "", logging.Discard()),
		cfg: config.Config{Server: config.Server{TLS: config.TLS{Active: true, CertFile: certFile, KeyFile: keyFile}}},
	}
	before := c.current.Load()
	ctx, cancel := context.WithCancel(t.Context())
	tick, done := make(chan time.Time), make(chan error, 1)
	go func() { done <- g.reloading(ctx, nil, tick) }()
	look := func() (old bool) { tick <- time.Now(); tick <- time.Now(); return c.current.Load() == before } // the second tick is taken once the first is done
	if !look() {
		t.Error("an unchanged certificate was read again")
	}
	write(certFile, next.Cert, 0) // the key comes later
	if !look() {
		t.Error("half a pair is used")
	}
	write(keyFile, next.Key, time.Minute)
	if look() {
		t.Error("the new pair is not used")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
