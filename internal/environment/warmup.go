package environment

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"rockpool/internal/fault"
)

// WarmUp is an interpreter that waits in each idle runner for a program. The zero WarmUp asks for none.
type WarmUp struct {
	Command []string // the words that a command begins with, such as python3 -u: what follows is a program's file and its arguments
	Imports []string // modules that are imported before
}

var (
	plainWord  = regexp.MustCompile(`^[A-Za-z0-9_./,:+@%=-]{1,200}$`)
	moduleName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$`)
)

const maxWarmUpWords = 64 // of the command, and imports

// Wanted says whether there is to be one.
func (w WarmUp) Wanted() bool { return len(w.Command) > 0 }

func (w WarmUp) validate() error {
	switch {
	case !w.Wanted() && len(w.Imports) > 0:
		return fault.New(fault.Invalid, "warmup.imports needs warmup.command, such as python3")
	case !w.Wanted():
		return nil
	case len(w.Command) > maxWarmUpWords || len(w.Imports) > maxWarmUpWords:
		return fault.New(fault.Invalid, "warmup: at most %d words and %d imports", maxWarmUpWords, maxWarmUpWords)
	case !strings.HasPrefix(path.Base(w.Command[0]), "python") || strings.Contains(w.Command[0], "="):
		return fault.New(fault.Invalid, "warmup.command must begin with a Python interpreter, such as python3: others cannot wait for a program")
	}
	for _, word := range w.Command {
		if !plainWord.MatchString(word) {
			return fault.New(fault.Invalid, "warmup.command: %q is no plain word: it may hold letters, digits and _ . / , : + @ %% = -", word)
		}
	}
	for _, module := range w.Imports {
		if !moduleName.MatchString(module) || len(module) > 200 {
			return fault.New(fault.Invalid, "warmup.imports: %q is not the name of a module", module)
		}
	}
	return nil
}

// settings is its part of a fingerprint.
func (w WarmUp) settings() string {
	if !w.Wanted() {
		return ""
	}
	return fmt.Sprintf(" warm %q %q", w.Command, w.Imports)
}
