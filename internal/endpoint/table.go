package endpoint

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"rockpool/internal/auth"
)

// Serve says which server a row may be served by.
type Serve uint8

// Where a row is served.
const (
	AnyServer Serve = iota
	Leader
	OwningNode
	LeaderUnlessStale // any server where the caller asks for a stale answer, else the leader
)

// Policy is what a row says besides its handler. Scope has no default.
type Policy struct {
	Scope   auth.Scope
	Serve   Serve
	Body    int64         // bytes; 0 = no body is read
	Timeout time.Duration // of the handler; 0 = none, for streams
	Strict  bool          // unknown fields and trailing data in a JSON body are refused
	Drain   bool          // the whole body is read before any answer, also before an error
}

// Handler is a rule: decoded request in, value or error out.
type Handler[Req, Resp any] func(context.Context, auth.Identity, Req) (Resp, error)

// StreamHandler writes its own answer. An error it returns before it wrote anything is encoded like any other.
type StreamHandler[Req any] func(http.ResponseWriter, *http.Request, auth.Identity, Req) error

// Route is one row.
type Route struct {
	Name   string
	Method string
	Path   string // gorilla/mux pattern
	Policy Policy

	Request  reflect.Type // what the handler is given; its tags say where the fields come from
	Response reflect.Type // what it answers; nil where it writes its own answer

	handle func(s *Server, w http.ResponseWriter, r *http.Request, id auth.Identity) error
}

// Table is all rows of a server.
type Table []Route

// Call is a row whose handler returns a value.
func Call[Req, Resp any](name, method, path string, p Policy, h Handler[Req, Resp]) Route {
	check[Req](name, p)
	return Route{name, method, path, p, reflect.TypeFor[Req](), reflect.TypeFor[Resp](), func(s *Server, w http.ResponseWriter, r *http.Request, id auth.Identity) error {
		req, err := decode[Req](r, p, id)
		if err != nil {
			return err
		}
		ctx := r.Context()
		if p.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, p.Timeout)
			defer cancel()
		}
		resp, err := h(ctx, id, req)
		if err != nil {
			return err
		}
		return s.encode(w, r, resp)
	}}
}

// Stream is a row whose handler writes its own answer: streams, downloads, WebSockets. A field tagged body:"raw" of type io.Reader is the
// limited request body.
func Stream[Req any](name, method, path string, p Policy, h StreamHandler[Req]) Route {
	check[Req](name, p)
	return Route{name, method, path, p, reflect.TypeFor[Req](), nil, func(s *Server, w http.ResponseWriter, r *http.Request, id auth.Identity) error {
		req, err := decode[Req](r, p, id)
		if err != nil {
			return err
		}
		if p.Timeout > 0 {
			ctx, cancel := context.WithTimeout(r.Context(), p.Timeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		return h(w, r, id, req)
	}}
}

func check[Req any](name string, p Policy) {
	if p.Scope == "" {
		panic(fmt.Sprintf("endpoint: row %s has no scope", name))
	}
	checkTags[Req](name)
}

// Statuser is a response with a status code other than 200.
type Statuser interface{ HTTPStatus() int }

// Headerer is a response with headers of its own.
type Headerer interface{ HTTPHeader(http.Header) }

// NoContent is an empty 204.
type NoContent struct{}

// HTTPStatus is 204.
func (NoContent) HTTPStatus() int { return http.StatusNoContent }

// Caller is who sent a request and the scope of its row. A field of a request that is tagged caller gets it, so that what filters a list need not be told.
type Caller struct {
	auth.Identity
	Scope auth.Scope
}

// None is the request type of rows that take nothing.
type None struct{}
