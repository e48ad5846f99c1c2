package nomad

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner/files"
	"rockpool/internal/timeline"
)

// Options say where the cluster is and how runners are derived.
type Options struct {
	Address   string // URL
	Token     string
	Namespace string
	Region    string // empty = that of the server asked
	CAFile    string
	CertFile  string
	KeyFile   string
	// ServerName is what the server's certificate must be for, where that is not the address's host: a Nomad cluster's own are for server.<region>.nomad.
	ServerName string
	Template   string // HCL of the job that everything is derived from
	Network    Network
	ForcePull  bool // pull images anew
	// SplitStderr says what executions are like that say nothing else: warm-ups are made for these.
	SplitStderr bool
	Observer    Observer
	Timeline    *timeline.Recorder // nil = nothing is recorded
	Inside      Inside             // of a cluster in this process
}

// Network is the configuration of runners with network access.
type Network struct {
	Mode     string
	Hostname string
	Servers  []string
	Searches []string
	Options  []string
}

// Client is the adapter. It is safe for concurrent use.
type Client struct {
	opts Options
	api  *api.Client // without a timeout of its own: contexts bound calls, and streams are endless
	log  logging.Logger

	address string // of the server, without a slash at its end
	dialer  *websocket.Dialer
	secret  string        // of this process, that marks are made with
	helpers atomic.Uint64 // so far

	native   atomic.Bool
	resolves atomic.Bool            // the cluster tells what an image is
	template atomic.Pointer[[]byte] // the parsed template job
	evals    evalWaits
	known    jobCache
	defs     definitions
	gateway  string // written into claims; "" = this gateway is alone
	lag      lagMeter
	listed   atomic.Bool // the first listing has been

	first     sync.Once
	recovered chan struct{}             // closed once found is what the first listing has shown
	found     []environment.Environment // in no order
	lapsed    []*api.Job                // templates that the first listing has shown as dead
	close     sync.Once
	idle      func()
}

const (
	dialTime      = 5 * time.Second
	aliveTime     = 15 * time.Second // between questions of the kernel whether the other host is there
	handshakeTime = 10 * time.Second
)

// New makes a client; nothing is sent yet.
func New(o Options, log logging.Logger) (*Client, error) {
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTime, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: aliveTime, Interval: aliveTime, Count: 4}}).DialContext,
		TLSHandshakeTimeout: handshakeTime,
		// All requests go to one host. A claim must not wait for a new connection.
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
		// A configuration of its own also keeps it to HTTP/1: exec is a WebSocket.
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.CAFile != "" || o.CertFile != "" || o.ServerName != "" {
		if err := secure(transport.TLSClientConfig, o); err != nil {
			return nil, err
		}
	}
	c := &Client{opts: o, log: log, secret: rand.Text(), recovered: make(chan struct{}), dialer: dialer(transport), idle: transport.CloseIdleConnections}
	c.evals.init()
	c.known.init()
	c.defs.init()
	var through http.RoundTripper = transport
	if o.Inside.Transport != nil {
		through = o.Inside.Transport
	}
	if o.Observer != nil {
		c.lag.told = o.Observer.EventLag
		through = &timed{next: through, observer: o.Observer, lag: &c.lag}
	}
	if o.Timeline != nil {
		through = traced{through}
	}
	var err error
	c.api, err = api.NewClient(&api.Config{
		Address: o.Address, SecretID: o.Token, Namespace: o.Namespace, Region: o.Region, HttpClient: &http.Client{Transport: through},
	})
	if err != nil {
		return nil, fmt.Errorf("nomad.address: %w", err)
	}
	c.address = strings.TrimSuffix(c.api.Address(), "/")
	return c, nil
}

// secure fills in whom to trust and who we are. The files of our own certificate are read for each new connection, so that a renewed one is used without a restart.
func secure(conf *tls.Config, o Options) error {
	conf.ServerName = o.ServerName
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return fmt.Errorf("nomad.tls.cafile: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("nomad.tls.cafile: %s has no certificate in PEM", o.CAFile)
		}
	}
	if o.CertFile == "" {
		return nil
	}
	own := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("nomad.tls.certfile, nomad.tls.keyfile: %w", err)
		}
		return &pair, nil
	}
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() }
	_, err := own()
	return err
}

// Close gives idle connections back.
func (c *Client) Close() { c.close.Do(c.idle) }

// Several says that this gateway shares the cluster with others: claims carry its id, and feed is told what the others make of the environments. It is
// called before anything else.
func (c *Client) Several(id string, feed TemplateFeed) { c.gateway, c.defs.feed = id, feed }

// Native reports whether the cluster offers executions and files of its own.
func (c *Client) Native() bool { return c.native.Load() }

// probe asks the server what it can do and has it parse the template.
func (c *Client) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	var self struct {
		Config struct {
			Rockpool struct{ NativeExec, ImageResolve bool }
		} `json:"config"`
	}
	if _, err := c.api.Raw().Query("/v1/agent/self", &self, c.query(ctx)); err != nil && !fault.Is(classify(err, ""), fault.Forbidden) {
		return classify(err, "ask the cluster what it offers") // a token need not have agent:read on a real Nomad
	}
	c.native.Store(self.Config.Rockpool.NativeExec)
	c.resolves.Store(self.Config.Rockpool.ImageResolve)
	if c.template.Load() != nil {
		return nil
	}
	var job json.RawMessage
	if _, err := c.api.Raw().Write("/v1/jobs/parse", &api.JobsParseRequest{JobHCL: c.opts.Template, Canonicalize: true}, &job, c.write(ctx)); err != nil {
		return classify(err, "parse the template job")
	}
	if _, err := decodeTemplate(job); err != nil {
		return err
	}
	c.template.Store((*[]byte)(&job))
	return nil
}

func (c *Client) query(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{Namespace: c.opts.Namespace}).WithContext(ctx)
}

func (c *Client) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{Namespace: c.opts.Namespace}).WithContext(ctx)
}

// params adds what every request says.
func (c *Client) params(q url.Values) url.Values {
	if c.opts.Namespace != "" {
		q.Set("namespace", c.opts.Namespace)
	}
	if c.opts.Region != "" {
		q.Set("region", c.opts.Region)
	}
	return q
}

func (c *Client) header() http.Header {
	h := http.Header{}
	if c.opts.Token != "" {
		h.Set("X-Nomad-Token", c.opts.Token)
	}
	return h
}

// raw sends a request that nomad/api has no method for. The answer's status is 200.
func (c *Client) raw(ctx context.Context, method, path string, params url.Values, body io.Reader, what string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.address+path+"?"+c.params(params).Encode(), body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	r.Header = c.header()
	resp, err := c.api.Raw().Do(r)
	if err != nil {
		return nil, classify(err, what)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return nil, ofStatus(resp.StatusCode, strings.TrimSpace(string(text)), what)
}

// maxAnswer bounds an answer that is kept whole, and each entry of a listing, in bytes: nodes are not believed.
const maxAnswer = 1 << 20

// answer is what our routes without a result send.
type answer struct{ Index uint64 }

func (c *Client) rawJSON(ctx context.Context, method, path string, params url.Values, body io.Reader, out any, what string) error {
	resp, err := c.raw(ctx, method, path, params, body, what)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fault.Wrap(fault.Unavailable, err, "%s: the answer was cut off", what)
	}
	return nil
}

// classify gives an error of nomad/api its kind.
func classify(err error, what string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[api.UnexpectedResponseError](err); ok && e.HasStatusCode() {
		return ofStatus(e.StatusCode(), e.Body(), what)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, err)
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fault.Wrap(fault.Unavailable, fmt.Errorf("%s: %w", what, err), "the cluster cannot be reached")
	}
	return fault.Wrap(fault.Internal, fmt.Errorf("%s: %w", what, err), "the cluster refused the request")
}

// ofStatus gives an answer other than 200 its kind.
func ofStatus(status int, text, what string) error {
	cause := error(&refused{what: what, status: status, text: text})
	switch {
	case status == http.StatusNotFound:
		return fault.Wrap(fault.NotFound, cause, "the cluster does not know it")
	case status == http.StatusForbidden:
		return fault.Wrap(fault.Forbidden, cause, "the cluster does not allow it")
	case status == http.StatusUnprocessableEntity:
		return fault.Wrap(fault.Unprocessable, cause, "%s", text)
	case status == http.StatusFailedDependency:
		return fault.Wrap(fault.NotFound, cause, "file not found or insufficient permissions")
	case strings.Contains(text, "Enforcing job modify index"):
		return fault.Wrap(fault.Conflict, cause, "somebody else changed it")
	case nodeDown(text):
		return fault.Wrap(fault.Unavailable, fmt.Errorf("%w: %w", files.ErrNodeDown, cause), "the runner's node cannot be reached: try again, or take another runner")
	case status == http.StatusTooManyRequests, status >= http.StatusBadGateway, passing(text):
		return fault.Wrap(fault.Unavailable, cause, "the cluster cannot be reached")
	}
	return fault.Wrap(fault.Internal, cause, "the cluster refused the request: %s", oneLine(text))
}

// refused is an answer other than 200, in the server's words.
type refused struct {
	what   string // was asked for
	status int
	text   string
}

func (r *refused) Error() string { return fmt.Sprintf("%s: status %d: %s", r.what, r.status, r.text) }

// wordsOf are the server's own where there are any: of what only the caller can mend they say more than the error's kind.
func wordsOf(err error) string {
	if r, ok := errors.AsType[*refused](err); ok && r.text != "" {
		return oneLine(r.text)
	}
	return fault.Public(err)
}

// oneLine is a server's text without line breaks, and not longer than a reader wants.
func oneLine(text string) string {
	return fmt.Sprintf("%.500s", strings.Join(strings.Fields(text), " "))
}

// nodeDown reports whether a server says that it has no connection to the node that is meant.
func nodeDown(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "no path to node") || strings.Contains(text, "failed to find node")
}

// passing reports whether a server's text says that the cluster cannot answer now, and would again: Nomad tells most of it as status 500.
func passing(text string) bool {
	text = strings.ToLower(text)
	for _, words := range []string{
		"no cluster leader", "not the leader", "leadership lost", "leadership transfer in progress", "no path to region", "no known servers", "no servers",
		"rpc error: eof", "connection refused", "connection reset", "broken pipe", "i/o timeout", "no route to host", "session shutdown", "stream closed",
		"rate limit", "server is shutting down", "deadline exceeded", "timed out enqueuing",
	} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return strings.HasSuffix(text, "eof")
}
