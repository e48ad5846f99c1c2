// Package ident makes and checks ids: random ones, time-based ones, and names that may stand in a path.
package ident

import (
	"regexp"

	"github.com/google/uuid"
)

// New is a random id (UUID version 4): evaluations, allocations, executions, nodes.
func New() string { return uuid.NewString() }

// NewTimed is a time-based id (UUID version 1), which the contract wants in runner ids. It never repeats on one machine,
// and its node part is random where no hardware address is to be had.
func NewTimed() (string, error) {
	u, err := uuid.NewUUID()
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// Valid reports whether s is a UUID in its canonical form.
func Valid(s string) bool {
	return len(s) == 36 && uuid.Validate(s) == nil
}

var name = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// ValidName reports whether s may stand in a path: letters, digits and hyphens, 1 to 64 of them.
func ValidName(s string) bool { return name.MatchString(s) }
