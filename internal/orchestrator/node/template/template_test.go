package template_test

import (
	"maps"
	"testing"

	"rockpool/internal/orchestrator/node/template"
)

func TestRender(t *testing.T) {
	env := map[string]string{"A": "one", "B_2": "{{ env \"A\" }}"}
	for _, c := range []struct{ name, text, want string }{
		{"plain text", "a } b", "a } b"},
		{"a variable", `x={{ env "A" }}!`, "x=one!"},
		{"without spaces and with the other quotes", "{{env `A`}}", "one"},
		{"a value is not a template again", `{{ env "B_2" }}`, `{{ env "A" }}`},
		{"one that is not set", `[{{ env "NONE" }}]`, "[]"},
		{"trimmed", "a \n{{- env \"A\" -}}\n b", "aoneb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := template.Render(c.text, env); err != nil || got != c.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	for _, text := range []string{`{{ key "a" }}`, `{{ env A }}`, `{{ range 1000000000 }}x{{ end }}`, `{{ env "A" | toUpper }}`, `{{ env "A"`, `{{}}`} {
		if got, err := template.Render(text, env); err == nil {
			t.Errorf("%s gave %q", text, got)
		}
	}
}

func TestVariables(t *testing.T) {
	got, err := template.Variables("# a comment\nA=1\n\nexport B=\"two words\"\nC='x=y'\nD=\n")
	if want := map[string]string{"A": "1", "B": "two words", "C": "x=y", "D": ""}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"nothing", "=1", "a b=1", "A=\x00"} {
		if _, err := template.Variables(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
