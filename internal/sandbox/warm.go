package sandbox

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	plainWord  = regexp.MustCompile(`^[A-Za-z0-9_./,:+@%=-]+$`)
	moduleName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$`)
)

// WarmSpec is an interpreter that is started before there is a program for it. An execution takes it over that runs `/bin/bash -c` with a line of plain words, of which
// the first are those of Command and the next is a file, and which is in all else what is said here.
type WarmSpec struct {
	Command     []string // such as python3 -u
	Imports     []string // modules that are imported before there is a program
	Env         []string // as in ExecSpec, each of the following too
	Dir         string
	User        string
	TTY         bool
	MergeStderr bool
}

const shell = "/bin/bash"

// Check says what of it cannot be: [ErrInvalid].
func (w WarmSpec) Check() error {
	if len(w.Command) == 0 || !strings.HasPrefix(path.Base(w.Command[0]), "python") {
		return fmt.Errorf("%w warm-up: its command must begin with a Python interpreter, such as python3", ErrInvalid)
	}
	for _, word := range w.Command {
		if !plainWord.MatchString(word) || strings.Contains(w.Command[0], "=") {
			return fmt.Errorf("%w warm-up: its command may not hold %q, which means something to a shell", ErrInvalid, word)
		}
	}
	for _, module := range w.Imports {
		if !moduleName.MatchString(module) {
			return fmt.Errorf("%w warm-up: %q is not the name of a module", ErrInvalid, module)
		}
	}
	for _, variable := range w.Env {
		name, _, _ := strings.Cut(variable, "=")
		if slices.Contains([]string{"PYTHONPATH", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS"}, name) || strings.HasPrefix(name, "BASH_FUNC_") {
			return fmt.Errorf("%w warm-up: with the variable %s a start may mean another thing each time", ErrInvalid, name)
		}
	}
	return nil
}

// plainWords are the words of a shell's line that is one simple command and in which nothing is expanded. ok = false: a shell might make something else of it.
func plainWords(line string) (words []string, ok bool) {
	for rest := strings.Trim(line, " \t"); rest != ""; rest = strings.TrimLeft(rest, " \t") {
		var word []byte
		for rest != "" && rest[0] != ' ' && rest[0] != '\t' {
			switch c := rest[0]; c {
			case '\'', '"':
				end := strings.IndexByte(rest[1:], c)
				if end < 0 || c == '"' && strings.ContainsAny(rest[1:1+end], "$`\\!") {
					return nil, false
				}
				word = append(word, rest[1:1+end]...)
				rest = rest[2+end:]
			default:
				if !plainWord.MatchString(rest[:1]) {
					return nil, false
				}
				word, rest = append(word, c), rest[1:]
			}
		}
		words = append(words, string(word))
	}
	for _, c := range []byte(line) {
		if c < ' ' && c != '\t' || c > '~' {
			return nil, false
		}
	}
	return words, len(words) > 0
}
