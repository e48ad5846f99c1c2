package endpoint_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
)

type upload struct {
	Body io.Reader `body:"raw"`
}

func TestEveryRequestIsObservedHoweverItEnds(t *testing.T) {
	begun := []string{}
	var seen []endpoint.Observation
	open := endpoint.Policy{Scope: auth.Public, Body: 100}
	s := endpoint.NewServer(endpoint.Table{
		endpoint.Stream("takes", "PUT", "/takes", open, func(w http.ResponseWriter, r *http.Request, _ auth.Identity, u upload) error {
			endpoint.Note(r.Context(), "what", "a note")
			_, err := io.Copy(io.Discard, io.LimitReader(u.Body, 3))
			_, _ = io.WriteString(w, "four")
			return err
		}),
		endpoint.Stream("breaks", "GET", "/breaks", open, func(w http.ResponseWriter, _ *http.Request, _ auth.Identity, _ endpoint.None) error {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
			panic(http.ErrAbortHandler)
		}),
		endpoint.Call("refuses", "GET", "/refuses", open, func(context.Context, auth.Identity, endpoint.None) (string, error) {
			return "", fault.New(fault.NotFound, "no")
		}),
	}, endpoint.Options{
		Begin: func(route string) { begun = append(begun, route) }, Observe: func(o endpoint.Observation) { seen = append(seen, o) },
		Error: func(w http.ResponseWriter, _ *http.Request, err error) { w.WriteHeader(fault.KindOf(err).Status()) },
	})
	ask := func(method, path, body string) {
		defer func() { _ = recover() }() // as net/http does with an answer that is broken off
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, strings.NewReader(body)))
	}
	ask("PUT", "/takes", "12345")
	ask("GET", "/breaks", "")
	ask("GET", "/refuses", "")
	if len(seen) != 3 || strings.Join(begun, " ") != "takes breaks refuses" {
		t.Fatalf("begun %q, observed %d", begun, len(seen))
	}
	if o := seen[0]; o.Received != 3 || o.Sent != 4 || o.Status != 200 || o.Length != -1 || o.Notes["what"] != "a note" || o.ID == "" {
		t.Errorf("an upload: %+v", o)
	}
	if o := seen[1]; o.Sent != 4 || o.Length != 10 || o.Status != 200 {
		t.Errorf("an answer that is broken off: %+v", o)
	}
	if o := seen[2]; o.Status != 404 || o.Sent != 0 || o.ID == seen[0].ID {
		t.Errorf("a refusal: %+v", o)
	}
}
