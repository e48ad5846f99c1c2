package gateway_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// address is where the gateway listens.
func (h *harness) address() string {
	return strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/api/v1")
}

// hold opens n connections that say nothing.
func (h *harness) hold(n int) (release func()) {
	h.Helper()
	var all []net.Conn
	release = func() {
		for _, c := range all {
			c.Close()
		}
		all = nil
	}
	h.Cleanup(func() { release() })
	for range n {
		c, err := net.Dial("tcp", h.address())
		if err != nil {
			h.Fatal(err)
		}
		all = append(all, c)
	}
	return release
}

// refused asks on a new connection and reports what it got, closing included.
func (h *harness) refused(method, path, body string) (int, string, http.Header, bool) {
	h.Helper()
	_, r := h.raw(fmt.Sprintf("%s /api/v1%s HTTP/1.1\r\nHost: h\r\nPoseidon-Token: secret\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body))
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		h.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	target, err := http.NewRequest(method, h.url+path, nil)
	if err != nil {
		h.Fatal(err)
	}
	if err := h.contract.Response(method, target.URL, resp.StatusCode, resp.Header, data); err != nil {
		h.Error(err)
	}
	return resp.StatusCode, string(data), resp.Header, resp.Close
}

func TestOneConnectionTooManyIsToldSo(t *testing.T) {
	const limit = 8
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.MaxConnections = limit })
	id := h.claim("0")
	h.http.CloseIdleConnections()
	release := h.hold(limit)
	h.eventually("the connections are taken in", func() bool {
		code, _, _, _ := h.refused("GET", "/health", "")
		return code == 503
	})
	for _, r := range append(routes(id), [2]string{"GET", "/health"}, [2]string{"GET", "/version"}, [2]string{"GET", "/rockpool/ready"}, [2]string{"GET", "/rockpool/openapi.json"}, [2]string{"GET", "/rockpool/websocket.schema.json"}) {
		want := 500
		if r[1] == "/health" || r[1] == "/rockpool/ready" {
			want = 503
		}
		code, body, head, closing := h.refused(r[0], r[1], strings.Repeat(" ", 100_000))
		if code != want || head.Get("Retry-After") == "" || !closing ||
			body != `{"message":"the gateway has 8 connections, which is its limit (server.maxconnections): close idle ones and try again","errorCode":"NOMAD_OVERLOAD"}` {
			t.Errorf("%s %s: got %d %s %v, closing: %v", r[0], r[1], code, body, head, closing)
		}
	}
	release()
	h.eventually("there is room again", func() bool { code, _, _ := h.do("GET", "/runners/"+id+"/files", ""); return code == 200 })
}

func TestThousandsOfIdleConnections(t *testing.T) {
	const limit, tried = 2000, 3000
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.MaxConnections = limit })
	id := h.claim("0")
	ws := h.dial(h.execute(id, `{"command":"cat; exit 5"}`)) // who is in stays in
	h.eventually("it runs", func() bool { return h.cluster.Running() == 1 })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	release := h.hold(tried)
	h.eventually("as many are taken in as may be", func() bool { return runtime.NumGoroutine()-goroutines >= limit-2 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := runtime.NumGoroutine() - goroutines; n > limit+100 {
		t.Errorf("%d goroutines serve %d connections", n, limit)
	}
	if each := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / limit; each > 40<<10 {
		t.Errorf("%d bytes for each connection", each)
	}
	h.want("GET", "/runners/"+id+"/files", "", 200, "files") // by a connection from before
	if err := ws.WriteMessage(1, []byte("hi\x04")); err != nil {
		t.Fatal(err)
	}
	h.messages(ws, begin, `{"type":"stdout","data":"hi"}`, `{"type":"exit","data":5}`)
	release()
	h.eventually("their goroutines end", func() bool { return runtime.NumGoroutine() < goroutines+100 })
}

func TestHeadersAreBounded(t *testing.T) {
	h := start(t, nomadtest.New(t))
	conn, r := h.raw("GET /api/v1/health HTTP/1.1\r\nHost: h\r\n")
	go func() {
		for range 1 << 10 { // refused long before the end
			if _, err := io.WriteString(conn, "X: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %v %v", resp, err)
	}
}

func TestTLSIsThatOfTheContract(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := start(t, nomadtest.New(t), func(c *config.Config) {
		c.Server.TLS.Active, c.Server.TLS.CertFile, c.Server.TLS.KeyFile = true, filepath.Join(dir, "cert"), filepath.Join(dir, "key")
		c.Server.MaxConnections = 3
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	var open []*tls.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	dial := func(c *tls.Config) (*tls.Conn, error) {
		c.RootCAs = roots
		conn, err := tls.Dial("tcp", h.address(), c)
		if err == nil {
			open = append(open, conn)
		}
		return conn, err
	}
	if _, err := dial(&tls.Config{MaxVersion: tls.VersionTLS12}); err == nil { //nolint:gosec // it has to be refused
		t.Error("TLS 1.2 was accepted")
	}
	for curve, ok := range map[tls.CurveID]bool{tls.CurveP521: true, tls.CurveP384: true, tls.CurveP256: true, tls.X25519: false} {
		conn, err := dial(&tls.Config{CurvePreferences: []tls.CurveID{curve}})
		if (err == nil) != ok {
			t.Errorf("curve %v: %v", curve, err)
		}
		if err == nil && conn.ConnectionState().Version != tls.VersionTLS13 {
			t.Errorf("version %x", conn.ConnectionState().Version)
		}
	}
	// A connection too many is told so here too.
	h.eventually("a refusal", func() bool {
		conn, err := dial(&tls.Config{})
		if err != nil {
			return false
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, "GET /api/v1/health HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode == 503 && strings.Contains(string(body), "maxconnections")
	})
}
