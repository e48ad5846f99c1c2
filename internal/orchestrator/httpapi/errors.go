package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/fault"
)

// coded is an error with a status code that Nomad's clients expect where another one would be usual.
type coded struct {
	status int
	text   string
}

func (e *coded) Error() string { return e.text }

func (e *coded) HTTPStatus() int { return e.status }

func answer(status int, format string, args ...any) error {
	return &coded{status, fmt.Sprintf(format, args...)}
}

func notFound(what string) error { return fault.New(fault.NotFound, "%s not found", what) }

// unsupported is the answer to everything of Nomad that is not offered.
func unsupported() error { return fault.New(fault.Unsupported, "not supported by Rockpool") }

func (a *API) writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, text := fault.KindOf(err).Status(), fault.Public(err)
	if c, ok := errors.AsType[*coded](err); ok {
		status, text = c.status, c.text
	} else {
		switch fault.KindOf(err) {
		case fault.Unauthenticated:
			status = http.StatusForbidden
		case fault.Conflict:
			status = http.StatusInternalServerError // as Nomad answers a lost compare-and-set
		case fault.Exhausted:
			retry, _ := a.cfg.Leader.Overloaded()
			w.Header().Set("Retry-After", strconv.Itoa(max(int(retry/time.Second), 1)))
		case fault.Unavailable:
			status = http.StatusInternalServerError
			if text == "No cluster leader" {
				w.Header().Set("X-Nomad-KnownLeader", "false")
			}
		}
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Nomad-Index", strconv.FormatUint(max(a.store.Index(), 1), 10))
	h.Del("Content-Encoding")
	h.Del("Content-Length")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

// ofNomad are the first parts of paths that Nomad has.
var ofNomad = map[string]bool{}

func init() {
	for p := range strings.FieldsSeq(`acl agent allocation allocations client deployment deployments evaluation evaluations event internal
		job jobs metrics namespace namespaces node nodes operator plugin plugins quota quotas quota-usages recommendation
		recommendations regions scaling search sentinel service services status system validate var vars volume volumes`) {
		ofNomad[p] = true
	}
}

func (a *API) notFound(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	first, _, _ := strings.Cut(rest, "/")
	if ok && ofNomad[first] && first != "internal" {
		a.writeError(w, r, unsupported())
		return
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusNotFound)
}

func (a *API) wrongMethod(w http.ResponseWriter, r *http.Request) {
	a.writeError(w, r, answer(http.StatusMethodNotAllowed, "Invalid method"))
}
