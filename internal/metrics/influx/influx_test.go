package influx_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/logging"
	"rockpool/internal/metrics/influx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counts is what became of points.
type counts struct {
	mu sync.Mutex
	by map[string]int
}

func (c *counts) add(result string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	c.by[result] += n
}

func (c *counts) get(result string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[result]
}

// receiver is an InfluxDB that keeps the lines it was sent, or refuses.
type receiver struct {
	mu     sync.Mutex
	lines  []string
	query  string
	token  string
	status int
	seen   chan struct{}
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body := io.Reader(q.Body)
	if q.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(q.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		body = z
	}
	data, _ := io.ReadAll(body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.query, r.token = q.URL.RawQuery, q.Header.Get("Authorization")
	if r.status == 0 {
		r.lines = append(r.lines, strings.Split(strings.TrimSpace(string(data)), "\n")...)
		w.WriteHeader(http.StatusNoContent)
	} else {
		w.WriteHeader(r.status)
	}
	select {
	case r.seen <- struct{}{}:
	default:
	}
}

func serve(t *testing.T, status int) (*receiver, string) {
	t.Helper()
	r := &receiver{status: status, seen: make(chan struct{}, 1)}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return r, s.URL
}

// run starts a writer, and returns what ends it.
func run(t *testing.T, url string, c *counts) (*influx.Writer, func()) {
	t.Helper()
	w := influx.New(influx.Options{URL: url, Token: "secret", Organization: "org", Bucket: "b", Stage: "test", Count: c.add, Log: logging.Discard()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return w, end
}

func TestPointsArriveAsLines(t *testing.T) {
	r, url := serve(t, 0)
	c := &counts{}
	w, end := run(t, url, c)
	w.Point("poseidon_/files", influx.Tags{"runner_id": "10-a", "empty": "", "odd": "a b,c=d\nforged x=1"}, influx.Fields{"duration": int64(5)}, time.Unix(0, 42))
	end()
	want := `poseidon_/files,odd=a\ b\,c\=d\ forged\ x\=1,runner_id=10-a,stage=test duration=5i 42`
	if len(r.lines) != 1 || r.lines[0] != want {
		t.Errorf("got %q, want %q", r.lines, want)
	}
	if r.token != "Token secret" || !strings.Contains(r.query, "org=org") || !strings.Contains(r.query, "bucket=b") || !strings.Contains(r.query, "precision=ns") {
		t.Errorf("asked with %q and %q", r.token, r.query)
	}
	if c.get(influx.Written) != 1 {
		t.Errorf("counted %v", c.by)
	}
}

// Each of these floods a writer whose InfluxDB does not take anything. No point may be waited for, none may be uncounted, and memory has a bound.
func TestAnInfluxDBInTroubleCostsOnlyPoints(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		select {
		case <-release:
		case <-q.Context().Done():
		}
	}))
	defer slow.Close()
	defer close(release)
	_, refusing := serve(t, http.StatusUnauthorized)
	_, failing := serve(t, http.StatusServiceUnavailable)
	for _, trouble := range []struct {
		name, url string
	}{{"gone", gone.URL}, {"slow", slow.URL}, {"refusing", refusing}, {"failing", failing}} {
		const points = 40_000 // a quarter more than there is room for
		name, url := trouble.name, trouble.url
		t.Run(name, func(t *testing.T) {
			c := &counts{}
			w, end := run(t, url, c)
			pad := strings.Repeat("x", 1000)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := range points {
				// The slow one answers nothing until the test ends: a point that waited for it would wait for ever.
				w.Point("poseidon_list", influx.Tags{"id": fmt.Sprint(i), "pad": pad}, influx.Fields{"count": i}, time.Now())
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4*influx.MaxBytes {
				t.Errorf("%d MB are kept", grown>>20)
			}
			if name != "refusing" && c.get(influx.Dropped) == 0 {
				t.Error("nothing was dropped, though there is no room for all")
			}
			end()
			lost := c.get(influx.Dropped) + c.get(influx.Refused) + c.get(influx.Expired)
			if lost != points || c.get(influx.Written) != 0 {
				t.Errorf("%d points were counted as lost, of %d: %v", lost, points, c.by)
			}
		})
	}
}
