package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/fault"
)

// ErrAddress is a connection that is refused because of where it would lead.
var ErrAddress = errors.New("the address is not a public one")

// never are addresses that no configuration opens: those at which clouds hand out the machine's own credentials.
var never = prefixes("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32")

// inner are addresses that only a registry named by the operator may have: private, local, shared, reserved, and those
// that wrap an IPv4 address, which a gateway would unwrap.
var inner = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"::/96", "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32", "2002::/16", "fc00::/7", "fec0::/10", "ff00::/8",
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		list[i] = netip.MustParsePrefix(t)
	}
	return list
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// allowed judges an address. named says that the operator named the host.
func allowed(a netip.Addr, named bool) error {
	a = a.Unmap().WithZone("")
	if within(never, a) || !named && within(inner, a) {
		return fmt.Errorf("%w: %s", ErrAddress, a)
	}
	return nil
}

const (
	dialTime    = 10 * time.Second
	headerTime  = 30 * time.Second
	stallTime   = 60 * time.Second // a download that brings nothing for so long is given up
	maxMetadata = 8 << 20          // bytes of any answer that is not a blob
)

// guard is the transport to registries. Where a request leads is judged by the address that is connected to, after names are resolved and redirects
// followed, so that neither a redirect nor a name whose address changes gets past it. Plain HTTP is spoken where the operator said
// so and nowhere else, whatever a reference or a redirect asks for.
type guard struct {
	plain map[string]bool // host:port
	named map[string]bool // host:port
	inner *http.Transport

	mu      sync.Mutex
	proxies map[string]bool // host:port; from the service's own environment, so named by the operator
}

func newGuard(plain, named []string, roots *x509.CertPool) *guard {
	g := &guard{plain: map[string]bool{}, named: map[string]bool{}, proxies: map[string]bool{}}
	for _, h := range plain {
		g.plain[withPort(h, "80")], g.named[withPort(h, "80")] = true, true
	}
	for _, h := range named {
		g.named[withPort(h, "443")] = true
	}
	g.inner = &http.Transport{
		Proxy: g.proxy, DialContext: g.dial, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: headerTime, IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 8,
		MaxResponseHeaderBytes: 256 << 10,
	}
	return g
}

// withPort is host:port of a host that may have no port.
func withPort(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return strings.ToLower(host)
	}
	return strings.ToLower(net.JoinHostPort(strings.Trim(host, "[]"), port))
}

func (g *guard) proxy(r *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(r)
	if u == nil || err != nil {
		return nil, err
	}
	port := map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	if port == "" {
		port = "80"
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.proxies[withPort(u.Host, port)] = true
	return u, nil
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	g.mu.Lock()
	named := g.named[strings.ToLower(address)] || g.proxies[strings.ToLower(address)]
	g.mu.Unlock()
	d := net.Dialer{Timeout: dialTime, Control: func(_, resolved string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(resolved)
		if err != nil {
			return fmt.Errorf("%w: %s", ErrAddress, resolved)
		}
		return allowed(a.Addr(), named)
	}}
	return d.DialContext(ctx, network, address)
}

// RoundTrip sends a request as the operator wants its host to be spoken to, and bounds the answer.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "https"
	if g.plain[withPort(r.URL.Host, "80")] {
		r.URL.Scheme = "http"
	}
	// A proxy would resolve the name: what is an address already is judged here too.
	if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil {
		if err := allowed(a, g.named[withPort(r.URL.Host, map[string]string{"http": "80", "https": "443"}[r.URL.Scheme])]); err != nil {
			return nil, g.explain(r, err)
		}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	resp, err := g.inner.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, g.explain(r, err)
	}
	watched := &watchedBody{inner: resp.Body, cancel: cancel, left: -1}
	watched.timer = time.AfterFunc(stallTime, func() {
		cancel(fault.New(fault.Unavailable, "%s sent nothing for %v", r.URL.Host, stallTime))
	})
	watched.timer.Stop()
	watched.cause = func() error { return context.Cause(ctx) }
	if !isBlob(resp) {
		watched.left = maxMetadata
	}
	resp.Body = watched
	return resp, nil
}

// isBlob reports whether an answer may be large. A blob is often fetched from elsewhere after a redirect.
func isBlob(resp *http.Response) bool {
	for r := resp.Request; r != nil; {
		if strings.Contains(r.URL.Path, "/blobs/") {
			return true
		}
		if r.Response == nil {
			return false
		}
		r = r.Response.Request
	}
	return false
}

func (g *guard) explain(r *http.Request, err error) error {
	if errors.Is(err, ErrAddress) {
		return fault.Wrap(fault.Invalid, err, "registry %s: its address is private, local or reserved: name the registry in orchestrator.images.plainhttp or as a mirror if it is yours",
			r.URL.Host)
	}
	return err
}

// watchedBody ends a body that stalls or grows too long.
type watchedBody struct {
	inner  io.ReadCloser
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error
	left   int64 // bytes; negative = no bound
	commas int   // of an answer with a bound
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fault.New(fault.Invalid, "the registry's answer is longer than %d bytes", maxMetadata)
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.timer.Reset(stallTime)
	n, err := b.inner.Read(p)
	b.timer.Stop()
	if b.left > 0 {
		b.left -= int64(n)
		// Here and not only where it is used: the library parses it, too.
		if b.commas += bytes.Count(p[:n], []byte(",")); b.commas > maxValues {
			return 0, tooManyValues()
		}
	}
	if err != nil && !errors.Is(err, io.EOF) && b.cause() != nil {
		err = b.cause()
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	err := b.inner.Close()
	b.cancel(nil)
	return err
}
