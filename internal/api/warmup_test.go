package api

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/api/dto"
	"rockpool/internal/environment"
)

func TestWordsOfACommand(t *testing.T) {
	for body, want := range map[string][]string{
		`{"command":["python3","-u"]}`:   {"python3", "-u"},
		`{"command":" python3   -u "}`:   {"python3", "-u"},
		`{"command":"","imports":["a"]}`: {},
		`{"command":null}`:               nil,
		`{}`:                             nil,
	} {
		var r dto.WarmUpRequest
		if err := json.Unmarshal([]byte(body), &r); err != nil || !slices.Equal(r.Command, want) {
			t.Errorf("%s: %q, %v", body, r.Command, err)
		}
	}
	for _, body := range []string{`{"command":3}`, `{"command":[3]}`, `{"command":{}}`} {
		var r dto.WarmUpRequest
		if err := json.Unmarshal([]byte(body), &r); err == nil {
			t.Errorf("%s: %q", body, r.Command)
		}
	}
}

// An answer says whether there really is an interpreter that waits, and nothing where none was asked for.
func TestAnswersTellOfWarmUps(t *testing.T) {
	on, off := func() bool { return true }, func() bool { return false }
	asked := environment.WarmUp{Command: []string{"python3"}, Imports: []string{"numpy"}}
	for name, test := range map[string]struct {
		warms func() bool
		env   environment.Environment
		want  *dto.WarmUp
	}{
		"none asked for":          {on, environment.Environment{}, nil},
		"in force":                {on, environment.Environment{WarmUp: asked}, &dto.WarmUp{Command: dto.Words{"python3"}, Imports: []string{"numpy"}, Active: true}},
		"a cluster without":       {off, environment.Environment{WarmUp: asked}, &dto.WarmUp{Command: dto.Words{"python3"}, Imports: []string{"numpy"}}},
		"nobody knows":            {nil, environment.Environment{WarmUp: asked}, &dto.WarmUp{Command: dto.Words{"python3"}, Imports: []string{"numpy"}}},
		"in a runtime of its own": {on, environment.Environment{WarmUp: asked, Runtime: "runsc"}, &dto.WarmUp{Command: dto.Words{"python3"}, Imports: []string{"numpy"}}},
	} {
		a := &API{opts: Options{Warms: test.warms}}
		if diff := cmp.Diff(test.want, a.environmentOut(test.env).WarmUp); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
