package nomad

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Observer is told how the cluster answers. Its methods must not block.
type Observer interface {
	// ClusterCall is one call: its kind, and ok, client_error, server_error or unreachable. Of streams it is the time until they begin.
	ClusterCall(call, result string, d time.Duration)
	// EventGap says that the event stream broke and everything was listed again.
	EventGap()
	// EventLag is the time from a change of our own to the event that tells it.
	EventLag(d time.Duration)
	// Event is one of the stream; payload must not be changed.
	Event(topic, kind, key string, payload []byte)
}

// timed tells an observer of each call.
type timed struct {
	next     http.RoundTripper
	observer Observer
	lag      *lagMeter
}

// RoundTrip sends a request on.
func (t *timed) RoundTrip(r *http.Request) (*http.Response, error) {
	begun := time.Now()
	resp, err := t.next.RoundTrip(r)
	result := "unreachable"
	if err == nil {
		switch resp.StatusCode / 100 {
		case 4:
			result = "client_error"
		case 5:
			result = "server_error"
		default:
			result = "ok"
		}
		// Only changes of jobs come back as events for certain.
		if result == "ok" && changesJob(r) {
			if index, err := strconv.ParseUint(resp.Header.Get("X-Nomad-Index"), 10, 64); err == nil {
				t.lag.changed(index, begun)
			}
		}
	}
	t.observer.ClusterCall(callOf(r.Method, r.URL.Path), result, time.Since(begun))
	return resp, err
}

// changesJob reports whether what was asked, once it is done, has changed a job.
func changesJob(r *http.Request) bool {
	path := r.URL.Path
	return r.Method != http.MethodGet && (strings.HasPrefix(path, "/v1/rockpool/job/") ||
		strings.HasPrefix(path, "/v1/job") && !strings.HasPrefix(path, "/v1/jobs/") && !strings.HasSuffix(path, "/plan"))
}

// areas are the parts of the API that calls are told apart by. Everything else is "other", so that there are few kinds.
var areas = map[string]string{
	"jobs": "job", "job": "job", "allocations": "allocation", "allocation": "allocation", "evaluation": "evaluation", "event": "event",
	"agent": "agent", "node": "node", "nodes": "node", "client": "client", "var": "variable", "vars": "variable", "rockpool": "rockpool",
}

// callOf is the kind of a call, such as job.put.
func callOf(method, path string) string {
	part, _, _ := strings.Cut(strings.TrimPrefix(path, "/v1/"), "/")
	area, ok := areas[part]
	if !ok {
		area = "other"
	}
	switch method {
	case http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodPatch:
		return area + "." + strings.ToLower(method)
	}
	return area
}

// lagMeter measures how long a change takes to come back, one at a time. Both ends are read from the own clock.
type lagMeter struct {
	told func(time.Duration)

	mu      sync.Mutex
	newest  uint64 // index heard of last
	waiting uint64 // of the change that is measured; 0 = none
	since   time.Time
}

func (l *lagMeter) changed(index uint64, begun time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == 0 && index > l.newest { // one that was heard of before its answer came says nothing
		l.waiting, l.since = index, begun
	}
}

func (l *lagMeter) heard(index uint64, now time.Time) {
	l.mu.Lock()
	l.newest = max(l.newest, index)
	lag, due := now.Sub(l.since), l.waiting != 0 && index >= l.waiting
	if due {
		l.waiting = 0
	}
	l.mu.Unlock()
	if due && l.told != nil {
		l.told(lag)
	}
}
