package httpapi

import (
	"net/http"

	"rockpool/internal/orchestrator/model"
)

// decide brings an entry onto the log and answers with what body makes of its result. As with registrations, the end of the evaluation that comes of it is
// held back until the answer has left; e is nil where there is none.
func (a *API) decide(w http.ResponseWriter, r *http.Request, entry any, e *model.Evaluation, body func(result any, index uint64) (any, error)) error {
	sent := false
	if e != nil {
		release := a.cfg.Leader.Hold(e.ID)
		defer func() { release(sent) }()
	}
	result, index, err := a.apply(r.Context(), entry)
	if err != nil {
		return err
	}
	out, err := body(result, index)
	if err != nil {
		return err
	}
	sent = true
	return flushed(w, a.written(index, out))
}

// evalID is empty where there is no evaluation.
func evalID(e *model.Evaluation) string {
	if e == nil {
		return ""
	}
	return e.ID
}
