package endpoint

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/timeline"
)

// Observation is what is known of a request after its answer.
type Observation struct {
	ID       string // of the request, as in the log
	Route    string
	Method   string
	Path     string
	Status   int
	Duration time.Duration
	Agent    string
	Vars     map[string]string
	Request  int64         // declared body size in bytes, -1 unknown
	Caller   auth.Identity // zero when the request did not come so far
	Remote   string        // ip:port of the client
	Received int64         // bytes of the body that were read
	Sent     int64         // bytes of the answer's body; what went over a connection that was taken over does not count
	Length   int64         // what the answer's Content-Length said; -1 = nothing
	Notes    map[string]string
}

type notesKey struct{}

// Note adds what a handler or the lookup has learned to the request's observation, such as an id that is not in its path.
func Note(ctx context.Context, name, value string) {
	if notes, ok := ctx.Value(notesKey{}).(map[string]string); ok {
		notes[name] = value
	}
}

// Denied is the cause of an error of kind Forbidden that the pipeline makes: the caller lacks a right.
type Denied struct {
	Scope  auth.Scope
	Target string // what it does not hold for; [auth.Everywhere] = anything
}

func (d *Denied) Error() string { return "the caller lacks " + string(d.Scope) + " for " + d.Target }

// Options are what differs between the servers.
type Options struct {
	Auth auth.Authenticator
	// Target names what a row's scope must hold for in this request, such as the namespace that it asks about or that its object lives in;
	// [auth.Everywhere] = it is enough that there is any. nil = always that.
	Target func(r *http.Request, route Route) string
	// Error writes an error in the wire's form. Nothing has been written yet.
	Error func(w http.ResponseWriter, r *http.Request, err error)
	// Forward hands a request to the server or node that must serve it, and reports whether it did. nil = all is served here.
	Forward func(w http.ResponseWriter, r *http.Request, route Route) (bool, error)
	// Observe is called after each request, however it ended; it must not block. nil = nothing is observed.
	Observe func(Observation)
	// Begin is called before each request that will be observed. nil = nothing.
	Begin func(route string)
	// Lookup runs between authorisation and decoding, for objects named in the path that must be known first. It may replace
	// the context. nil = nothing.
	Lookup func(r *http.Request, route Route, caller auth.Identity) (context.Context, error)
	// ContentType of JSON answers; empty = application/json.
	ContentType string
	// CompressAbove is the size in bytes above which an answer of a Call row is compressed for a client that asks. 0 = never.
	CompressAbove int
	// Trace begins the span of a request, unless its context carries one already; nil, also of a request, = none is recorded. That of a caller who was not let in is forgotten.
	Trace func(r *http.Request, route Route) *timeline.Span
	// TellSteps has answers say what steps they took, to callers whose requests are recorded.
	TellSteps bool
	Log       logging.Logger
}

// Server is an http.Handler over a table.
type Server struct {
	opts   Options
	router *mux.Router
}

// NewServer builds the handler. Two rows with one name are a broken table and panic.
func NewServer(t Table, o Options) *Server {
	if o.Log == nil {
		o.Log = logging.Discard()
	}
	if o.ContentType == "" {
		o.ContentType = "application/json"
	}
	s := &Server{opts: o, router: mux.NewRouter().UseEncodedPath().SkipClean(true)}
	names := map[string]bool{}
	// A path that is spelled out goes before one with a variable in its place, in whatever order areas list theirs.
	t = slices.Clone(t)
	slices.SortStableFunc(t, func(x, y Route) int {
		return cmp.Compare(variable.ReplaceAllString(x.Path, "\xff"), variable.ReplaceAllString(y.Path, "\xff"))
	})
	for _, route := range t {
		if names[route.Name] {
			panic("endpoint: two rows are called " + route.Name)
		}
		names[route.Name] = true
		s.router.NewRoute().MatcherFunc(frame(route.Path)).Path(route.Path).Methods(route.Method).Handler(s.pipeline(route)).Name(route.Name)
	}
	s.router.NotFoundHandler = empty(http.StatusNotFound)
	s.router.MethodNotAllowedHandler = empty(http.StatusMethodNotAllowed)
	return s
}

// frame is what a path begins and ends with. The router tries one row after the other, each with an expression: with this it does so for the few rows only that
// can be meant. A row's own text is the same escaped or not, so whatever its expression matches has its frame.
func frame(path string) mux.MatcherFunc {
	begin, end := path, ""
	if i, j := strings.IndexByte(path, '{'), strings.LastIndexByte(path, '}'); i >= 0 {
		begin, end = path[:i], path[j+1:]
	}
	whole := begin == path
	return func(r *http.Request, _ *mux.RouteMatch) bool {
		p := r.URL.Path
		return strings.HasPrefix(p, begin) && strings.HasSuffix(p, end) && (!whole || len(p) == len(begin))
	}
}

// variable is one of a path.
var variable = regexp.MustCompile(`\{[^/]*\}`)

func empty(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(status)
	})
}

// SetFallbacks replaces the answers to unknown paths and wrong methods, for a wire that wants a text there.
func (s *Server) SetFallbacks(notFound, wrongMethod http.Handler) {
	s.router.NotFoundHandler, s.router.MethodNotAllowedHandler = notFound, wrongMethod
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Strangers name files and write what is in them: no browser shall take an answer for a page.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	s.router.ServeHTTP(w, r)
}

func (s *Server) pipeline(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, id, notes := time.Now(), ident.New(), map[string]string{}
		rec := &recorder{ResponseWriter: w}
		body := &counted{}
		if r.Body != nil && r.Body != http.NoBody {
			body.ReadCloser, r.Body = r.Body, body
		}
		ctx := context.WithValue(logging.Add(logging.With(r.Context(), s.opts.Log), "request_id", id), notesKey{}, notes)
		var caller auth.Identity
		if span := s.span(r, route); span != nil {
			ctx = timeline.With(ctx, span)
			if s.opts.TellSteps {
				rec.steps = span
			}
			defer func() { finish(span, route, rec, caller) }()
		}
		r = r.WithContext(ctx)
		if s.opts.Begin != nil {
			s.opts.Begin(route.Name)
		}
		if s.opts.Observe != nil {
			defer func() { // also after a panic that breaks the connection off
				s.opts.Observe(Observation{
					ID: id, Route: route.Name, Method: r.Method, Path: r.URL.Path, Status: rec.status, Duration: time.Since(start),
					Agent: r.UserAgent(), Vars: mux.Vars(r), Request: r.ContentLength, Caller: caller, Remote: r.RemoteAddr,
					Received: body.read.Load(), Sent: rec.sent, Length: rec.length(), Notes: notes,
				})
			}()
		}
		err := s.guarded(rec, r, route, &caller)
		if err == nil {
			return
		}
		log := logging.From(ctx)
		if fault.KindOf(err) == fault.Internal && !refusal(err) {
			log.WithFields(logging.Fields{"route": route.Name, "error": err.Error()}).Error("request failed")
		} else {
			log.WithFields(logging.Fields{"route": route.Name, "error": err.Error()}).Debug("request refused")
		}
		switch {
		case rec.hijacked:
		case rec.status == 0:
			s.opts.Error(rec, r, err)
		default:
			// A body that ends early must not look complete.
			panic(http.ErrAbortHandler)
		}
	})
}

// span begins the span of a request; nil = none is recorded.
func (s *Server) span(r *http.Request, route Route) *timeline.Span {
	if s.opts.Trace == nil {
		return nil
	}
	span := timeline.From(r.Context()).Child(timeline.Request) // passed on within this process
	if span == nil {
		span = s.opts.Trace(r, route)
	}
	span.Text(timeline.Route, route.Name)
	return span
}

// finish ends the span of a request.
func finish(span *timeline.Span, route Route, rec *recorder, caller auth.Identity) {
	if route.Policy.Scope != auth.Public && caller.Name == "" && !caller.Management {
		span.Discard() // whoever is not known shall not fill what is kept
		return
	}
	span.Number(timeline.Status, int64(rec.status))
	span.End()
}

// counted counts what is read of a body. A handler that proxies it reads in a goroutine of its own.
type counted struct {
	io.ReadCloser
	read atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// refusal reports whether an error chose a status code that blames the request.
func refusal(err error) bool {
	var v Statuser
	return errors.As(err, &v) && v.HTTPStatus() < http.StatusInternalServerError
}

func (s *Server) guarded(w *recorder, r *http.Request, route Route, caller *auth.Identity) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so too
				panic(p)
			}
			logging.From(r.Context()).WithFields(logging.Fields{"route": route.Name, "panic": p, "stack": string(debug.Stack())}).
				Error("handler panicked")
			err = fault.New(fault.Internal, "an internal error occurred")
		}
	}()
	body := r.Body // without the limit that serve puts around it
	err = s.serve(w, r, route, caller)
	if err != nil && route.Policy.Drain && !w.hijacked && w.status == 0 {
		// Some clients fail when the answer comes before they have sent everything.
		_, _ = io.Copy(io.Discard, io.LimitReader(body, drainLimit))
	}
	return err
}

const drainLimit = 1 << 30 // bytes read and dropped before an error is answered

func (s *Server) serve(w *recorder, r *http.Request, route Route, caller *auth.Identity) error {
	p := route.Policy
	if s.opts.Forward != nil {
		if done, err := s.opts.Forward(w, r, route); done || err != nil {
			return err
		}
	}
	var id auth.Identity
	if p.Scope != auth.Public {
		var err error
		if id, err = s.opts.Auth.Authenticate(r); err != nil {
			return err
		}
		*caller = id
		target := auth.Everywhere
		if s.opts.Target != nil {
			target = s.opts.Target(r, route)
		}
		if !id.MayIn(p.Scope, target) {
			return fault.Wrap(fault.Forbidden, &Denied{p.Scope, target}, "Permission denied")
		}
	}
	if s.opts.Lookup != nil {
		ctx, err := s.opts.Lookup(r, route, id)
		if err != nil {
			return err
		}
		r = r.WithContext(ctx)
	}
	r.Body = http.MaxBytesReader(w, r.Body, p.Body)
	return route.handle(s, w, r, id)
}

func (s *Server) encode(w http.ResponseWriter, r *http.Request, resp any) error {
	status := http.StatusOK
	if v, ok := resp.(Statuser); ok {
		status = v.HTTPStatus()
	}
	if v, ok := resp.(Headerer); ok {
		v.HTTPHeader(w.Header())
	}
	if status == http.StatusNoContent {
		w.WriteHeader(status)
		return nil
	}
	if status == http.StatusCreated {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(status)
		return nil
	}
	if v, ok := resp.(interface{ HTTPBody() any }); ok {
		resp = v.HTTPBody()
	}
	if n := s.opts.CompressAbove; n > 0 && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w = &compressor{ResponseWriter: w, above: n, status: status}
	}
	return WriteJSON(w, r, s.opts.ContentType, status, resp)
}

// compressor sends one large write compressed. The JSON encoder writes a value in one piece.
type compressor struct {
	http.ResponseWriter
	above  int
	status int
}

func (w *compressor) WriteHeader(int) {} // not before the size is known

func (w *compressor) Write(p []byte) (int, error) {
	if len(p) <= w.above {
		w.ResponseWriter.WriteHeader(w.status)
		return w.ResponseWriter.Write(p)
	}
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Add("Vary", "Accept-Encoding")
	w.ResponseWriter.WriteHeader(w.status)
	z, _ := gzip.NewWriterLevel(w.ResponseWriter, gzip.BestSpeed) // the level is valid
	n, err := z.Write(p)
	return n, errors.Join(err, z.Close())
}

// PathVar is a variable of the matched row's path as a handler gets it, for what runs before decoding; "" when it cannot be decoded.
func PathVar(r *http.Request, name string) string {
	s, err := url.PathUnescape(mux.Vars(r)[name])
	if err != nil {
		return ""
	}
	return s
}

// WriteJSON writes v compactly, without escaping HTML and without a line end, or indented when the query says pretty.
func WriteJSON(w http.ResponseWriter, r *http.Request, contentType string, status int, v any) error {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if _, pretty := r.URL.Query()["pretty"]; pretty {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "    ")
		return e.Encode(v)
	}
	e := json.NewEncoder(unended{w})
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// unended drops the line end that the encoder puts behind a value. There is no other one in compact JSON.
type unended struct{ io.Writer }

func (u unended) Write(p []byte) (int, error) {
	_, err := u.Writer.Write(bytes.TrimSuffix(p, []byte("\n")))
	return len(p), err
}

// recorder remembers the status. It keeps http.ResponseController and hijacking working.
type recorder struct {
	http.ResponseWriter
	status   int
	hijacked bool
	sent     int64
	steps    *timeline.Span // that the answer tells; nil = nothing
}

// length is what the header says of the answer's size; -1 = nothing.
func (w *recorder) length() int64 {
	n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func (w *recorder) WriteHeader(status int) {
	w.tell(status)
	w.ResponseWriter.WriteHeader(status)
}

// tell notes the status, and puts the steps so far into the header.
func (w *recorder) tell(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if steps := w.steps.Steps(); steps != "" {
		w.Header().Set(timeline.HeaderSteps, steps)
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.tell(http.StatusOK)
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked = true
		w.status = http.StatusSwitchingProtocols
	}
	return c, rw, err
}
