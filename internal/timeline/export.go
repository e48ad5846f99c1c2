package timeline

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Collector is where spans are sent to, by OTLP over HTTP.
type Collector struct {
	Endpoint string            // URL; without a path it is /v1/traces; "" = nowhere
	Headers  map[string]string // of each request, such as Authorization
	CAFile   string            // whom to trust besides the system's own; "" = the system's
	Timeout  time.Duration     // of one request; 0 = 10 s
}

// DefaultTimeout is that of one request to the collector.
const DefaultTimeout = 10 * time.Second

// Check finds what is wrong with a collector. Its errors name nothing of a header.
func (c Collector) Check() error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("it is not the address of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318")
	}
	for name, value := range c.Headers {
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) || strings.ContainsAny(value, "\r\n\x00") {
			return errors.New("one is not of the form name=value, such as Authorization=Bearer xyz, or its value holds a line end") // what stands for a name may be a secret
		}
	}
	if c.Timeout < 0 || c.Timeout > time.Minute {
		return errors.New("the timeout is not between 0 and 60 seconds")
	}
	return nil
}

// export is a span on its way.
type export struct {
	trace        TraceID
	link         Ref
	id, parent   SpanID
	step         Step
	begun, ended time.Time
	failed       bool
	tags         []tag
}

// uploader speaks OTLP.
type uploader struct {
	client  otlptrace.Client
	timeout time.Duration
	idle    func()
	// Of the sender.
	resource []*commonpb.KeyValue
}

const (
	serviceName    = "service.name"
	serviceVersion = "service.version"
)

// attributes are what the sender is.
func (o Options) attributes() []*commonpb.KeyValue {
	all := []*commonpb.KeyValue{text(serviceName, o.Service), text(serviceVersion, o.Version)}
	for _, name := range slices.Sorted(maps.Keys(o.Resource)) {
		if name != serviceName && name != serviceVersion {
			all = append(all, text(name, o.Resource[name]))
		}
	}
	return all
}

// maxReply bounds what is read of a collector's answer, in bytes.
const maxReply = 64 << 10

// bounded cuts off answers that are longer than any collector's.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxReply), resp.Body}
	}
	return resp, err
}

// newUploader makes a client whose every setting is given, so that the library takes none from the environment.
func newUploader(c Collector) (uploader, error) {
	if err := c.Check(); err != nil {
		return uploader{}, err
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return uploader{}, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConns: 2, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: maxReply,
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return uploader{}, fmt.Errorf("cafile: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return uploader{}, fmt.Errorf("cafile: %s has no certificate in PEM", c.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	headers := maps.Clone(c.Headers)
	if headers == nil {
		headers = map[string]string{}
	}
	client := otlptracehttp.NewClient(
		otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithHeaders(headers), otlptracehttp.WithTimeout(timeout),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: false}), // what comes after it would be dropped meanwhile
		otlptracehttp.WithHTTPClient(&http.Client{
			Transport: bounded{transport}, Timeout: timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the headers are for the collector alone
		}),
	)
	return uploader{client: client, timeout: timeout, idle: transport.CloseIdleConnections}, nil
}

func (u uploader) open(ctx context.Context) error {
	if err := u.client.Start(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("tracing: %w", err)
	}
	return nil
}

func (u uploader) close(ctx context.Context) error {
	defer u.idle()
	return u.client.Stop(ctx)
}

func (u uploader) upload(ctx context.Context, batch []export) error {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	spans := make([]*tracepb.Span, len(batch))
	for i := range batch {
		spans[i] = batch[i].proto()
	}
	return u.client.UploadTraces(ctx, []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: u.resource},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "rockpool"}, Spans: spans}},
	}})
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// proto is the span as OTLP has it. The first of a request is a server's, a call of ours a client's.
func (e *export) proto() *tracepb.Span {
	p := &tracepb.Span{
		TraceId: e.trace[:], SpanId: e.id[:], Name: e.step.String(), Kind: tracepb.Span_SPAN_KIND_INTERNAL,
		StartTimeUnixNano: nanos(e.begun), EndTimeUnixNano: nanos(e.ended),
	}
	switch e.step {
	case Request:
		p.Kind = tracepb.Span_SPAN_KIND_SERVER
	case ClusterCall, ExecDial:
		p.Kind = tracepb.Span_SPAN_KIND_CLIENT
	}
	if e.parent != (SpanID{}) {
		p.ParentSpanId = e.parent[:]
	}
	if e.link != (Ref{}) && e.link.Trace != e.trace && e.step == Request {
		p.Links = []*tracepb.Span_Link{{TraceId: e.link.Trace[:], SpanId: e.link.Span[:]}}
	}
	if e.failed {
		p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	}
	for _, t := range e.tags {
		kv := text(t.key.String(), t.text)
		if t.text == "" {
			kv.Value = &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: t.number}}
		}
		p.Attributes = append(p.Attributes, kv)
	}
	return p
}

func nanos(t time.Time) uint64 { return uint64(max(t.UnixNano(), 0)) }
