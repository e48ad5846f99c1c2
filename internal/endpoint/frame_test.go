package endpoint

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/gorilla/mux"
)

// Whatever a row's expression matches has the row's frame.
func TestNoPathIsOutOfTheFrameOfItsRow(t *testing.T) {
	rows := []string{"/", "/v1/jobs", "/v1/job/{id}", "/v1/job/{id}/plan", "/v1/var/{path:.*}", "/v1/{a}/x/{b}", "/api/v1/runners/{id}/files/raw", "/v1/n/{id:[0-9]+}", "/{x}a"}
	pieces := []string{"/", "v1", "jobs", "job", "plan", "var", "x", "a", "%2F", "%6Aob", "%20", "ü", "..", "7", "raw", "files", "runners", "api", "n"}
	rng := rand.New(rand.NewPCG(1, 2))
	matched, routers := map[string]int{}, map[string]*mux.Route{}
	for _, row := range rows {
		routers[row] = mux.NewRouter().UseEncodedPath().SkipClean(true).Path(row)
	}
	for range 20_000 {
		row := rows[rng.IntN(len(rows))]
		var b strings.Builder
		switch rng.IntN(3) {
		case 0: // near the row
			for part := range strings.SplitSeq(strings.TrimPrefix(row, "/"), "/") {
				b.WriteByte('/')
				if i := strings.IndexByte(part, '{'); i >= 0 {
					b.WriteString(pieces[rng.IntN(len(pieces))])
					b.WriteString(part[strings.LastIndexByte(part, '}')+1:])
				} else {
					b.WriteString(part)
				}
			}
		default:
			b.WriteByte('/')
			for range rng.IntN(9) {
				b.WriteString(pieces[rng.IntN(len(pieces))])
			}
		}
		u, err := url.Parse(b.String())
		if err != nil || !strings.HasPrefix(b.String(), "/") || strings.HasPrefix(b.String(), "//") {
			continue
		}
		r := &http.Request{Method: http.MethodGet, URL: u}
		if routers[row].Match(r, &mux.RouteMatch{}) {
			matched[row]++
			if !frame(row)(r, nil) {
				t.Fatalf("%s is of the row %s, and out of its frame", b.String(), row)
			}
		}
	}
	for _, row := range rows {
		if matched[row] == 0 {
			t.Errorf("no path was of the row %s", row)
		}
	}
}
