// Package fault gives errors a kind and a public sentence. The kind is the only thing that is ever mapped to a status
// code; the public sentence is the only thing that ever reaches a client. The cause stays for the log.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Kind says what sort of failure an error is.
type Kind uint8

// The kinds. The zero value is Internal, so that an error nobody classified is never taken for the caller's fault.
const (
	Internal        Kind = iota
	Invalid              // the request is wrong
	Unauthenticated      // no or an unknown token
	Forbidden            // the token does not allow it
	NotFound
	Gone        // it was there once
	Conflict    // a compare-and-set lost
	Exhausted   // a bound is reached; later it may work
	Unavailable // something needed does not answer
	Deadline    // it took too long
	TooLarge
	Unprocessable
	Unsupported
)

var kinds = [...]struct {
	name   string
	status int
}{
	Internal:        {"internal", http.StatusInternalServerError},
	Invalid:         {"invalid", http.StatusBadRequest},
	Unauthenticated: {"unauthenticated", http.StatusUnauthorized},
	Forbidden:       {"forbidden", http.StatusForbidden},
	NotFound:        {"not found", http.StatusNotFound},
	Gone:            {"gone", http.StatusGone},
	Conflict:        {"conflict", http.StatusConflict},
	Exhausted:       {"exhausted", http.StatusTooManyRequests},
	Unavailable:     {"unavailable", http.StatusServiceUnavailable},
	Deadline:        {"deadline", http.StatusGatewayTimeout},
	TooLarge:        {"too large", http.StatusRequestEntityTooLarge},
	Unprocessable:   {"unprocessable", http.StatusUnprocessableEntity},
	Unsupported:     {"unsupported", http.StatusNotImplemented},
}

func (k Kind) String() string { return kinds[k].name }

// Status is the HTTP status code that stands for the kind where a wire has no rule of its own.
func (k Kind) Status() int { return kinds[k].status }

// Error is an error with a kind, a sentence for the client, and a cause for the log.
type Error struct {
	Kind   Kind
	Public string
	Cause  error
}

func (e *Error) Error() string {
	if e.Cause == nil || e.Cause.Error() == e.Public { // a cause whose own text is public needs no second mention
		return e.Public
	}
	return e.Public + ": " + e.Cause.Error()
}

func (e *Error) Unwrap() error { return e.Cause }

// New makes an error whose text may be shown to the client.
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Public: fmt.Sprintf(format, args...)}
}

// Wrap gives cause a kind and a public sentence. A nil cause gives nil.
func Wrap(k Kind, cause error, format string, args ...any) error {
	if cause == nil {
		return nil
	}
	return &Error{Kind: k, Public: fmt.Sprintf(format, args...), Cause: cause}
}

// KindOf is the kind of the outermost Error in err's chain. Context errors are Deadline and Unavailable; everything else that has
// no kind is Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline
	case errors.Is(err, context.Canceled):
		return Unavailable
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Public is the sentence a client may see.
func Public(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Public
	}
	switch KindOf(err) {
	case Deadline:
		return "the request took too long"
	case Unavailable:
		return "the request was cancelled"
	}
	return "an internal error occurred"
}
