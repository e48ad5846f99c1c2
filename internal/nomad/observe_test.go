package nomad

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestKindsOfCallsAreFew(t *testing.T) {
	for call, want := range map[string]string{
		"GET /v1/jobs": "job.get", "PUT /v1/job/10-abc": "job.put", "DELETE /v1/job/10-abc": "job.delete", "GET /v1/event/stream": "event.get",
		"GET /v1/allocation/x": "allocation.get", "PUT /v1/rockpool/image/resolve": "rockpool.put", "GET /v1/made/up": "other.get", "GET /": "other.get", "BREW /v1/jobs": "job",
	} {
		method, path, _ := strings.Cut(call, " ")
		if got := callOf(method, path); got != want {
			t.Errorf("%s: %s, want %s", call, got, want)
		}
	}
}

// noted keeps what it is told.
type noted struct{ calls []string }

func (n *noted) ClusterCall(call, result string, _ time.Duration) {
	n.calls = append(n.calls, call+" "+result)
}
func (n *noted) EventGap()                            {}
func (n *noted) EventLag(time.Duration)               {}
func (n *noted) Event(string, string, string, []byte) {}

type answers func(*http.Request) (*http.Response, error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func TestCallsAreTold(t *testing.T) {
	n, lag := &noted{}, &lagMeter{}
	for _, status := range []int{200, 404, 500, 0} {
		next := answers(func(*http.Request) (*http.Response, error) {
			if status == 0 {
				return nil, errors.New("refused")
			}
			return &http.Response{StatusCode: status, Header: http.Header{"X-Nomad-Index": {"7"}}, Body: http.NoBody}, nil
		})
		resp, err := (&timed{next, n, lag}).RoundTrip(httptest.NewRequest("PUT", "/v1/job/10-x", nil))
		if (err == nil) != (status != 0) {
			t.Errorf("%d: %v", status, err)
		}
		if err == nil {
			_ = resp.Body.Close()
		}
	}
	if got := strings.Join(n.calls, ", "); got != "job.put ok, job.put client_error, job.put server_error, job.put unreachable" {
		t.Errorf("told: %s", got)
	}
	if lag.waiting != 7 {
		t.Errorf("the change at index 7 is not measured: %d", lag.waiting)
	}
}

func TestTheLagIsThatOfOneChangeAtATime(t *testing.T) {
	var told []time.Duration
	l := &lagMeter{told: func(d time.Duration) { told = append(told, d) }}
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	l.changed(10, at(0))
	l.changed(11, at(1)) // one at a time
	l.heard(9, at(2))
	l.heard(10, at(3))
	l.heard(12, at(4))
	l.changed(12, at(3)) // its event was faster than its answer
	l.heard(13, at(9))
	l.changed(14, at(10))
	l.heard(20, at(12)) // a later one tells it too
	if len(told) != 2 || told[0] != 3*time.Second || told[1] != 2*time.Second {
		t.Errorf("told %v", told)
	}
}
