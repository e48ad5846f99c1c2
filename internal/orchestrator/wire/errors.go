package wire

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"rockpool/internal/fault"
)

// answered is an error with a status code that Nomad's clients expect where another one would be usual.
type answered struct {
	status int
	text   string
}

func (e *answered) Error() string { return e.text }

func (e *answered) HTTPStatus() int { return e.status }

// Answer makes an error that is answered with that status code and text.
func Answer(status int, format string, args ...any) error {
	return &answered{status, fmt.Sprintf(format, args...)}
}

// Status is the code and the text that an error is answered with.
func Status(err error) (status int, text string) {
	if e, ok := errors.AsType[*answered](err); ok {
		return e.status, e.text
	}
	status = fault.KindOf(err).Status()
	switch fault.KindOf(err) {
	case fault.Unauthenticated:
		status = http.StatusForbidden
	case fault.Conflict, fault.Unavailable: // as Nomad answers a lost compare-and-set, and whatever else it cannot do now
		status = http.StatusInternalServerError
	}
	return status, fault.Public(err)
}

// WriteError answers with an error as plain text. Nothing has been written yet.
func WriteError(w http.ResponseWriter, err error) {
	status, text := Status(err)
	h := w.Header()
	if fault.KindOf(err) == fault.Exhausted && h.Get("Retry-After") == "" {
		h.Set("Retry-After", "1")
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Del("Content-Encoding")
	h.Del("Content-Length")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}
