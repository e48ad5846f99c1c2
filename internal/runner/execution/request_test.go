package execution_test

import (
	"strings"
	"testing"

	"rockpool/internal/runner/execution"
)

func TestWhatWaitsIsBounded(t *testing.T) {
	for name, r := range map[string]execution.Request{
		"by number": {},
		"by size":   {Command: strings.Repeat("x", 1<<20), Env: map[string]string{"A": "b"}},
	} {
		var s execution.Store
		var last string
		n := 0
		for {
			id, err := s.Put(r)
			if err != nil {
				break
			}
			if last = id; n == 10_000 {
				t.Fatalf("%s: nothing is refused", name)
			}
			n++
		}
		if _, ok := s.Take(last); !ok {
			t.Errorf("%s: what was there is gone", name)
		}
		if _, err := s.Put(r); err != nil {
			t.Errorf("%s: there is room again, but: %v", name, err)
		}
	}
}
