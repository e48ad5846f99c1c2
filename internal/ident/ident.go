// Package ident makes and checks ids: random ones, time-based ones, and names that may stand in a path.
package ident

import (
	"encoding/binary"
	"regexp"
	"sync"

	"github.com/google/uuid"
)

// New is a random id (UUID version 4): executions, nodes, tokens.
func New() string { return uuid.NewString() }

// rowLength is how many ids that are made one after another begin with the same 16 bits, and apart what is between two of them in the next 16.
const rowLength, apart = 1024, 1 << 16 / rowLength

// row is where the next id of NewNear is.
var row struct {
	sync.Mutex
	next uint32 // its first four bytes; the upper half stays until the row is full
	left int
}

// NewNear is an id (UUID version 4) beside the one that was made before it, for what is kept in the order of ids and mostly changed soon after it was made: evaluations. The first 16 bits
// are drawn anew for 1,024 ids, the next 16 are counted in steps of 64, so that seven of the digits that people type tell them apart, and 90 are random.
func NewNear() string {
	id := uuid.New()
	row.Lock()
	if row.left == 0 {
		row.next, row.left = binary.BigEndian.Uint32(id[:]), rowLength
	}
	binary.BigEndian.PutUint32(id[:], row.next)
	row.next = row.next&^0xffff | (row.next+apart)&0xffff
	row.left--
	row.Unlock()
	return id.String()
}

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
