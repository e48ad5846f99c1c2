// Package timelinetest is a collector for tests: it takes spans by OTLP over HTTP and keeps them.
package timelinetest

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that came.
type Span struct {
	Service, Name, Trace, ID, Parent string
	Resource                         map[string]string
	Links                            []string // traces
	Begun, Ended                     time.Time
	Text                             map[string]string // attributes
	Number                           map[string]int64
}

// Collector keeps what comes.
type Collector struct {
	URL string

	mu      sync.Mutex
	spans   []Span
	headers []http.Header
	bodies  [][]byte
}

// New starts a collector for the time of a test.
func New(t testing.TB) *Collector {
	c := &Collector{}
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	c.URL = s.URL
	return c
}

// ServeHTTP takes a request of OTLP.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	z, err := gzip.NewReader(r.Body)
	if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "this is no request of OTLP with gzip", http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(z)
	var in collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(body, &in) != nil {
		http.Error(w, "it cannot be read", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers, c.bodies = append(c.headers, r.Header), append(c.bodies, body)
	for _, rs := range in.ResourceSpans {
		resource := map[string]string{}
		for _, a := range rs.Resource.Attributes {
			resource[a.Key] = a.Value.GetStringValue()
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				one := Span{
					Service: resource["service.name"], Resource: resource, Name: s.Name, Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
					Begun: time.Unix(0, int64(s.StartTimeUnixNano)), Ended: time.Unix(0, int64(s.EndTimeUnixNano)), Text: map[string]string{}, Number: map[string]int64{},
				}
				for _, l := range s.Links {
					one.Links = append(one.Links, hex.EncodeToString(l.TraceId))
				}
				for _, a := range s.Attributes {
					one.Text[a.Key], one.Number[a.Key] = a.Value.GetStringValue(), a.Value.GetIntValue()
				}
				c.spans = append(c.spans, one)
			}
		}
	}
}

// Spans are all that came so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Headers are those of all requests, Bodies what was in them.
func (c *Collector) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]http.Header(nil), c.headers...)
}

// Bodies are the requests as they came, without compression.
func (c *Collector) Bodies() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte(nil), c.bodies...)
}
