// Package template fills in the text of a task's templates.
//
// Of Nomad's template language it knows {{ env "NAME" }}, the value of a variable of the task's environment, also with the trimming signs {{- and -}}.
// Everything else between braces is refused when the job is registered: the text is a stranger's, and what it could make a full template engine do on
// the node has no bound.
package template

import (
	"fmt"
	"regexp"
	"strings"
)

// MaxText bounds a filled-in template, in bytes.
const MaxText = 1 << 20

var (
	action = regexp.MustCompile(`(\s*\{\{-|\{\{)((?s:.*?))(-\}\}\s*|\}\})`)
	call   = regexp.MustCompile("^\\s*env\\s+(?:\"([A-Za-z_][A-Za-z0-9_.]*)\"|`([A-Za-z_][A-Za-z0-9_.]*)`)\\s*$")
)

// Check refuses a text with anything but {{ env "NAME" }} between braces.
func Check(text string) error {
	_, err := Render(text, nil)
	return err
}

// Render fills in a text. A variable that is not set is empty.
func Render(text string, env map[string]string) (string, error) {
	var out strings.Builder
	rest := text
	for {
		at := action.FindStringSubmatchIndex(rest)
		if at == nil {
			break
		}
		name := call.FindStringSubmatch(rest[at[4]:at[5]])
		if name == nil {
			return "", fmt.Errorf("template: %q is not offered: a template knows {{ env \"NAME\" }} only", strings.TrimSpace(rest[at[0]:at[1]]))
		}
		out.WriteString(rest[:at[0]])
		out.WriteString(env[name[1]+name[2]])
		rest = rest[at[1]:]
		if out.Len() > MaxText {
			return "", fmt.Errorf("template: the text is longer than %d bytes", MaxText)
		}
	}
	if strings.Contains(rest, "{{") {
		return "", fmt.Errorf("template: %q has no end", "{{")
	}
	out.WriteString(rest)
	if out.Len() > MaxText {
		return "", fmt.Errorf("template: the text is longer than %d bytes", MaxText)
	}
	return out.String(), nil
}

// Variables reads NAME=value lines, as templates for the environment hold them. Empty lines and those that begin with # are left out, quotes around a value
// are taken off.
func Variables(text string) (map[string]string, error) {
	env := map[string]string{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if name = strings.TrimSpace(name); !ok || !variable.MatchString(name) {
			return nil, fmt.Errorf("template: line %d is not NAME=value", n)
		}
		value = strings.TrimSpace(value)
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		if strings.IndexByte(value, 0) >= 0 {
			return nil, fmt.Errorf("template: the value in line %d holds a NUL", n)
		}
		env[name] = value
	}
	return env, nil
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)
