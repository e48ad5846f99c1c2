package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequests sends bodies and queries to every route that is not a stream, in the name of somebody who may do everything. Nothing panics, and no entry that
// it makes ends a server.
func FuzzRequests(f *testing.F) {
	for i, body := range []string{
		fullJob, fullTemplate, `{}`, `null`, `[]`, `[null]`, `{"Name":"x"}`, `{"ID":1e999}`, `"x"`, strings.Repeat("[", 2_000), `{"Job":{"ID":"x","TaskGroups":[{"Tasks":[{"Config":{"a":[1,{"b":null}]}}]}]}}`,
		`{"JobHCL":"job \"x\" { group \"g\" { count = 2 task \"t\" { driver = \"mock\" } } }","Canonicalize":true}`, `{"NodeID":"","Meta":{"a":null}}`,
	} {
		f.Add(uint16(i*7), "namespace=a&prefix=x&filter=ID==a", body)
	}
	f.Add(uint16(0), "index=18446744073709551615&wait=-1s&per_page=-1&next_token=%00", "")
	f.Add(uint16(3), "namespace=*&filter=ID%20matches%20%22(%22&reverse=x", "")
	f.Add(uint16(5), "per_page=9223372036854775807&next_token=a&pretty", "")
	w := newWorld(f)
	token := w.management(f)
	var routes []struct{ method, path string }
	for _, r := range w.table() {
		p, _, _ := strings.Cut(w.path(r), "?")
		if strings.Contains(p, "/stream") || strings.HasSuffix(p, "/watch") || strings.Contains(p, "monitor") || strings.Contains(p, "pprof") || strings.Contains(p, "/snapshot") ||
			strings.HasSuffix(p, "/connection") || strings.Contains(p, "/acl/token/") || strings.Contains(p, "raft") || strings.Contains(p, "/exec") {
			continue
		}
		routes = append(routes, struct{ method, path string }{r.Method, p})
	}
	f.Fuzz(func(t *testing.T, route uint16, query, body string) {
		to := routes[int(route)%len(routes)]
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		values.Del("index") // which waits
		r := httptest.NewRequestWithContext(t.Context(), to.method, to.path, strings.NewReader(body))
		r.URL.RawQuery = values.Encode()
		r.Header.Set("X-Nomad-Token", token)
		r.Header.Set(secretHeader, nodeSecret)
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, r)
		w.log.mu.Lock()
		poison := w.log.poison
		w.log.mu.Unlock()
		if poison != nil {
			t.Fatalf("%s %s ends every server: %v", to.method, to.path, poison)
		}
		if rec.Code == http.StatusInternalServerError && strings.Contains(rec.Body.String(), "an internal error occurred") {
			t.Fatalf("%s panics", fmt.Sprint(to, " ", values.Encode()))
		}
	})
}
