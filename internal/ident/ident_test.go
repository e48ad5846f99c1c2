package ident

import (
	"sync"
	"testing"
)

// Ids beside one another are ids like others: none twice, none with the first seven digits of another in its row, and no more than a row begins alike.
func TestNearIDs(t *testing.T) {
	const callers, each = 4, 1000
	var ids [callers][each]string
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for i := range each {
				ids[c][i] = NewNear()
			}
		})
	}
	all.Wait()
	short, rows, rest := map[string]bool{}, map[string]int{}, map[string]bool{}
	for c := range callers {
		for _, id := range ids[c] {
			if !Valid(id) || id[14] != '4' {
				t.Fatalf("%q is no UUID of version 4", id)
			}
			if short[id[:7]] || rest[id[9:]] {
				t.Fatalf("the digits of %s occur twice", id)
			}
			short[id[:7]], rest[id[9:]] = true, true
			rows[id[:4]]++
		}
	}
	// Rows may begin alike by chance, one pair in 65,536; three of four do not.
	if least, most := callers*each/rowLength, callers*each/rowLength+2; len(rows) < least-1 || len(rows) > most {
		t.Errorf("%d ids are in %d rows", callers*each, len(rows))
	}
}
