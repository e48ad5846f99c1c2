package environment_test

import (
	"strings"
	"testing"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
)

func TestWarmUpsThatMakeNoSense(t *testing.T) {
	for name, test := range map[string]struct {
		warm environment.WarmUp
		ok   bool
	}{
		"none":                       {environment.WarmUp{}, true},
		"python":                     {environment.WarmUp{Command: []string{"python3"}}, true},
		"python with options":        {environment.WarmUp{Command: []string{"/usr/bin/python3.11", "-X", "utf8=1"}, Imports: []string{"numpy", "os.path"}}, true},
		"imports alone":              {environment.WarmUp{Imports: []string{"numpy"}}, false},
		"another language":           {environment.WarmUp{Command: []string{"ruby"}}, false},
		"a variable":                 {environment.WarmUp{Command: []string{"python=1"}}, false},
		"more than a command":        {environment.WarmUp{Command: []string{"python3;reboot"}}, false},
		"an expansion":               {environment.WarmUp{Command: []string{"python3", "$(reboot)"}}, false},
		"an empty word":              {environment.WarmUp{Command: []string{"python3", ""}}, false},
		"more than a module":         {environment.WarmUp{Command: []string{"python3"}, Imports: []string{"os; x"}}, false},
		"too many modules":           {environment.WarmUp{Command: []string{"python3"}, Imports: strings.Split(strings.Repeat("a ", 65), " ")}, false},
		"a module with a long name":  {environment.WarmUp{Command: []string{"python3"}, Imports: []string{strings.Repeat("a", 201)}}, false},
		"a module that is no module": {environment.WarmUp{Command: []string{"python3"}, Imports: []string{"a..b"}}, false},
	} {
		err := environment.Environment{WarmUp: test.warm}.Validate()
		if test.ok && err != nil || !test.ok && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Runners of another warm-up are out of date; without one the fingerprint is what it always was.
func TestAWarmUpIsPartOfTheSettings(t *testing.T) {
	none := environment.Environment{ID: 1, Image: "host"}
	plain, numpy := none, none
	plain.WarmUp.Command = []string{"python3"}
	numpy.WarmUp = environment.WarmUp{Command: []string{"python3"}, Imports: []string{"numpy"}}
	if none.Settings() == plain.Settings() || plain.Settings() == numpy.Settings() || plain.Equal(numpy) || strings.Contains(none.Settings(), "warm") {
		t.Errorf("%q %q %q", none.Settings(), plain.Settings(), numpy.Settings())
	}
}
