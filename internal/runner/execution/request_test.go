package execution_test

import (
	"fmt"
	"strings"
	"testing"

	"rockpool/internal/fault"
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

func TestWhatNoProgramCanBeToldIsRefused(t *testing.T) {
	longest := strings.Repeat("x", 128<<10-1)
	many, few := map[string]string{}, map[string]string{}
	for i := range 100_000 {
		many[fmt.Sprint("V", i)] = "" // 1,588,895 bytes as Linux counts them
	}
	for i := range 7 {
		few[fmt.Sprint("V", i)] = longest[:len(longest)-3]
	}
	for name, c := range map[string]struct {
		r    execution.Request
		want string
	}{
		"the longest":         {execution.Request{Command: longest, Env: map[string]string{"A": longest[2:]}}, ""},
		"a longer command":    {execution.Request{Command: longest + "x"}, "the command takes 131072 bytes, at most 131071"},
		"a longer variable":   {execution.Request{Env: map[string]string{"A": longest[1:]}}, "A takes 131072 bytes, at most 131071"},
		"many variables":      {execution.Request{Env: many}, "its 100000 environment variables take"},
		"nearly all":          {execution.Request{Command: longest[:len(longest)-80], Env: few}, ""},
		"all and one more":    {execution.Request{Command: longest, Env: few}, "at most 1048576"},
		"a variable's number": {execution.Request{Env: map[string]string{"1": ""}}, "must match"},
	} {
		err := c.r.Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !fault.Is(err, fault.Invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
