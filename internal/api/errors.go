package api

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"rockpool/internal/api/dto"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
)

// answered is an error with an answer that its kind alone does not tell.
type answered struct {
	error
	status     int
	code       dto.ErrorCode // of a server error
	empty      bool
	retryAfter time.Duration // 0 = says nothing
}

func (e *answered) Unwrap() error { return e.error }

func empty(err error) error {
	return &answered{error: err, status: fault.KindOf(err).Status(), empty: true}
}

func coded(err error, code dto.ErrorCode) error {
	return &answered{error: err, status: http.StatusInternalServerError, code: code}
}

// unreadable is the answer to everything that cannot be listed or downloaded.
func unreadable(err error) error {
	return &answered{error: fault.Wrap(fault.NotFound, err, "file not found or insufficient permissions"), status: http.StatusFailedDependency}
}

// writeError writes an error in the contract's form.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, code := statusOf(err)
	if e, ok := errors.AsType[*answered](err); ok {
		status = e.status
		if e.code != "" {
			code = e.code
		}
		if e.retryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.retryAfter.Seconds()))))
		}
		if e.empty {
			status = e.status
			code = ""
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(status)
			return
		}
	}
	w.Header().Del("Content-Length")
	if denied, ok := errors.AsType[*endpoint.Denied](err); ok {
		status, err = http.StatusForbidden, forbidden(denied)
	}
	switch {
	case status == http.StatusUnauthorized:
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(status)
	case status >= http.StatusInternalServerError:
		_ = endpoint.WriteJSON(w, r, "application/json", status, dto.ServerError{Message: fault.Public(err), ErrorCode: code})
	default:
		_ = endpoint.WriteJSON(w, r, "application/json", status, dto.ClientError{Message: fault.Public(err)})
	}
}

// forbidden says what a token lacks. That the cluster forbids something to the gateway is another matter, and a server error.
func forbidden(d *endpoint.Denied) error {
	if d.Target == auth.Everywhere {
		return fault.Wrap(fault.Forbidden, d, "the token does not have the scope %s", d.Scope)
	}
	return fault.Wrap(fault.Forbidden, d, "the token does not have the scope %s for execution environment %s", d.Scope, d.Target)
}

// statusOf maps a kind. The contract knows few codes: what the cluster refuses is a server error like any other.
func statusOf(err error) (int, dto.ErrorCode) {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.TooLarge:
		return http.StatusBadRequest, ""
	case fault.Unauthenticated:
		return http.StatusUnauthorized, ""
	case fault.NotFound:
		return http.StatusNotFound, ""
	case fault.Gone:
		return http.StatusGone, ""
	case fault.Exhausted:
		return http.StatusInternalServerError, dto.CodeOverload
	case fault.Unavailable:
		return http.StatusInternalServerError, dto.CodeUnreachable
	}
	return http.StatusInternalServerError, dto.CodeUnknown
}
