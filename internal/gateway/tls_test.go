package gateway_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/certs"
	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad/nomadtest"
)

// authority makes certificates for the loopback address.
type authority struct {
	*testing.T
	dir string
	ca  certs.Pair
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	ca, err := certs.CreateCA("test", time.Now(), certs.CALifetime)
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, t.TempDir(), ca}
}

// issue writes a new certificate and key to the files.
func (a authority) issue() (certFile, keyFile string) {
	a.Helper()
	pair, err := certs.Create(a.ca, certs.Request{Role: certs.Server, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}, time.Now())
	if err != nil {
		a.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, "cert.pem"), filepath.Join(a.dir, "key.pem")
	for file, data := range map[string][]byte{certFile: pair.Cert, keyFile: pair.Key} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			a.Fatal(err)
		}
	}
	return certFile, keyFile
}

func (a authority) client(change func(*tls.Config)) (*http.Client, *tls.Config) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.ca.Cert)
	conf := &tls.Config{RootCAs: pool}
	if change != nil {
		change(conf)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}, conf
}

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	certFile, keyFile := a.issue()
	tokens := tokenFile(t)
	cfg := config.Default()
	cfg.Server.Port, cfg.Nomad.Address, cfg.Server.TokenFile = 0, nomadtest.New(t).URL, tokens
	cfg.Server.TLS = config.TLS{Active: true, CertFile: certFile, KeyFile: keyFile}
	var log lockedBuffer
	l, err := logging.New(&log, "info", logging.JSON)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(cfg, nil, l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	url := "https://" + g.Addr().String() + "/api/v1"
	// seen is the serial number of the certificate that a new connection gets, and what was negotiated.
	seen := func(change func(*tls.Config)) (string, tls.ConnectionState, error) {
		c, _ := a.client(change)
		resp, err := c.Get(url + "/version")
		if err != nil {
			return "", tls.ConnectionState{}, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.TLS.PeerCertificates[0].SerialNumber.String(), *resp.TLS, nil
	}
	first, state, err := seen(nil)
	if err != nil || state.Version != tls.VersionTLS13 {
		t.Fatalf("version %x: %v", state.Version, err)
	}
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":               func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"an unknown authority":  func(c *tls.Config) { c.RootCAs = x509.NewCertPool() },
		"a curve not on offer":  func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} },
		"another server's name": func(c *tls.Config) { c.ServerName = "elsewhere.example" },
	} {
		if _, _, err := seen(change); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for _, curve := range []tls.CurveID{tls.CurveP521, tls.CurveP384, tls.CurveP256} {
		if _, state, err := seen(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{curve} }); err != nil || state.CurveID != curve {
			t.Errorf("%v: negotiated %v, %v", curve, state.CurveID, err)
		}
	}
	// The WebSocket of an execution is told to use TLS too.
	h := &harness{T: t, url: url}
	h.http, _ = a.client(nil)
	if code, _, _ := h.as("root", "PUT", "/execution-environments/10", env("1")); code != 201 {
		t.Fatal(code)
	}
	h.eventually("a runner", func() bool {
		_, body, _ := h.as("root", "GET", "/statistics/execution-environments", "")
		return strings.Contains(body, `"idleRunners":1`)
	})
	id := h.claimAs("root")
	_, body, _ := h.as("root", "POST", "/runners/"+id+"/execute", `{"command":"cat"}`)
	ws, _ := strings.CutPrefix(strings.TrimSuffix(body, `"}`), `{"websocketUrl":"`)
	_, conf := a.client(nil)
	conn, _, err := (&websocket.Dialer{TLSClientConfig: conf}).Dial(ws, http.Header{"Poseidon-Token": {secrets["root"]}})
	if !strings.HasPrefix(ws, "wss://") || err != nil {
		t.Fatalf("%s: %v", ws, err)
	}
	defer conn.Close()

	// New files that are wrong change nothing; good ones are used from the next connection on, and open ones go on.
	hangUp := func(until string) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		h.eventually(until, func() bool { return strings.Contains(log.String(), until) })
	}
	if err := os.WriteFile(keyFile, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	hangUp("not everything could be read again")
	if still, _, err := seen(nil); err != nil || still != first {
		t.Errorf("a key that is none is used: %s, %v", still, err)
	}
	a.issue()
	if err := os.WriteFile(tokens, []byte("tokens:\n- {name: new, token: brand-new-brand-new, scopes: [read]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hangUp("certificate and tokens were read again")
	if now, _, err := seen(nil); err != nil || now == first {
		t.Errorf("the new certificate is not used: %v", err)
	}
	if code, _, _ := h.as("brand-new-brand-new", "GET", "/execution-environments", ""); code != 200 {
		t.Errorf("the new token: %d", code)
	}
	if code, _, _ := h.as("root", "GET", "/execution-environments", ""); code != 401 {
		t.Errorf("a token that was taken out: %d", code)
	}
	if err := conn.WriteMessage(websocket.TextMessage, []byte("still here\n\x04")); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			if e, ok := errors.AsType[*websocket.CloseError](err); !ok || e.Code != 1000 {
				t.Errorf("the open session: %v", err)
			}
			break
		}
		all.Write(data)
	}
	if !strings.Contains(all.String(), "still here") {
		t.Errorf("the open session got %s", &all)
	}
}

func TestACertificateThatIsNoneEndsTheStart(t *testing.T) {
	cfg := config.Default()
	cfg.Server.Port, cfg.Nomad.Address = 0, "http://127.0.0.1:1"
	cfg.Server.TLS = config.TLS{Active: true, CertFile: "/nowhere/cert.pem", KeyFile: "/nowhere/key.pem"}
	if _, err := gateway.New(cfg, nil, logging.Discard()); err == nil || !strings.Contains(err.Error(), "server.tls.certfile") {
		t.Errorf("got %v", err)
	}
}
