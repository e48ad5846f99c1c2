package endpoint_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
)

type bodyRequest struct {
	ID    string                `path:"id"`
	Stale endpoint.Flag         `query:"stale"`
	Wait  time.Duration         `query:"wait"`
	Body  struct{ Name string } `body:"json"`
}

func newServer() http.Handler {
	echo := func(_ context.Context, _ auth.Identity, r bodyRequest) (map[string]any, error) {
		if r.Body.Name == "panic" {
			panic("boom")
		}
		return map[string]any{"id": r.ID, "stale": bool(r.Stale), "wait": r.Wait.String(), "name": r.Body.Name}, nil
	}
	return endpoint.NewServer(endpoint.Table{
		endpoint.Call("echo", "PUT", "/things/{id}", endpoint.Policy{Scope: auth.Gateway, Body: 64}, echo),
		endpoint.Call("strict", "PUT", "/strict/{id}", endpoint.Policy{Scope: auth.Public, Body: 64, Strict: true}, echo),
	}, endpoint.Options{
		Auth: auth.Func(func(r *http.Request) (auth.Identity, error) {
			switch r.Header.Get("Token") {
			case "good":
				return auth.Identity{Scopes: map[auth.Scope]bool{auth.Gateway: true}}, nil
			case "weak":
				return auth.Identity{}, nil
			}
			return auth.Identity{}, fault.New(fault.Unauthenticated, "no token")
		}),
		Error: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fault.Public(err), fault.KindOf(err).Status())
		},
	})
}

func TestPipeline(t *testing.T) {
	h := newServer()
	for _, c := range []struct {
		name, method, path, token, body string
		status                          int
		want                            string
	}{
		{"a good call", "PUT", "/things/a%2Fb?stale&wait=2s", "good", `{"Name":"x","more":1}`, 200, `{"id":"a/b","name":"x","stale":true,"wait":"2s"}`},
		{"no token", "PUT", "/things/1", "", `{}`, 401, "no token"},
		{"a token without the scope", "PUT", "/things/1", "weak", `{}`, 403, "Permission denied"},
		{"an unknown path needs no token", "PUT", "/nothing", "", ``, 404, ""},
		{"a wrong method needs no token", "GET", "/things/1", "", ``, 405, ""},
		{"an empty body", "PUT", "/things/1", "good", ``, 400, "empty"},
		{"a null body is zero values", "PUT", "/things/1", "good", `null`, 200, `"name":""`},
		{"broken JSON", "PUT", "/things/1", "good", `{"Name":`, 400, "unexpected EOF"},
		{"a wrong type", "PUT", "/things/1", "good", `{"Name":3}`, 400, "Name"},
		{"too large a body", "PUT", "/things/1", "good", `{"Name":"` + strings.Repeat("x", 100) + `"}`, 413, "64 bytes"},
		{"a bad duration", "PUT", "/things/1?wait=soon", "good", `{}`, 400, "soon"},
		{"an unknown field where it is strict", "PUT", "/strict/1", "", `{"Nam":1}`, 400, "Nam"},
		{"two values where it is strict", "PUT", "/strict/1", "", `{} {}`, 400, "goes on"},
		{"a panic", "PUT", "/things/1", "good", `{"Name":"panic"}`, 500, "internal error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.Header.Set("Token", c.token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
				t.Errorf("got %d %q, want %d with %q", w.Code, w.Body, c.status, c.want)
			}
			if c.want == "" && w.Body.Len() != 0 {
				t.Errorf("the body is not empty: %q", w.Body)
			}
		})
	}
}

// What a header says must not lift a bound: a request that claims to become another protocol may have a body like any other.
func TestAnUpgradeThatIsNoneHasABoundedBody(t *testing.T) {
	r := httptest.NewRequest("PUT", "/things/1", strings.NewReader(`{"Name":"`+strings.Repeat("x", 100)+`"}`))
	r.Header.Set("Token", "good")
	r.Header.Set("Connection", "keep-alive, Upgrade")
	r.Header.Set("Upgrade", "websocket")
	w := httptest.NewRecorder()
	newServer().ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a body beyond the limit is answered with %d %q", w.Code, w.Body)
	}
}

func TestARowWithoutScopePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	endpoint.Call("open", "GET", "/", endpoint.Policy{}, func(context.Context, auth.Identity, endpoint.None) (int, error) { return 0, nil })
}

func TestARequestFieldWithoutSourcePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	endpoint.Call("odd", "GET", "/", endpoint.Policy{Scope: auth.Public}, func(context.Context, auth.Identity, struct{ A string }) (int, error) { return 0, nil })
}
