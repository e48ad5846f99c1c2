package httpapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/wire"
)

var answer = wire.Answer

func notFound(what string) error { return fault.New(fault.NotFound, "%s not found", what) }

// unsupported is the answer to everything of Nomad that is not offered.
func unsupported() error { return fault.New(fault.Unsupported, "not supported by Rockpool") }

func (a *API) writeError(w http.ResponseWriter, _ *http.Request, err error) {
	if fault.Is(err, fault.Unavailable) && fault.Public(err) == "No cluster leader" {
		w.Header().Set("X-Nomad-KnownLeader", "false")
	}
	if fault.Is(err, fault.Exhausted) {
		retry, _ := a.cfg.Leader.Overloaded()
		w.Header().Set("Retry-After", strconv.Itoa(max(int(retry/time.Second), 1)))
	}
	w.Header().Set("X-Nomad-Index", strconv.FormatUint(max(a.store.Index(), 1), 10))
	wire.WriteError(w, err)
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
