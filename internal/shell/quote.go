// Package shell makes shell text of data: the one place where that is done.
package shell

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrNUL says that a value has a NUL byte, which no word of a shell can hold.
var ErrNUL = errors.New("a value for a shell has a NUL byte")

// Quote makes words of a POSIX shell that stand for exactly the given strings, separated by spaces. The text is valid UTF-8 whatever the strings are, so that it
// passes through JSON: bytes that are not are written as escapes of printf, which the shell expands.
func Quote(words ...string) (string, error) {
	var b strings.Builder
	for i, w := range words {
		if strings.IndexByte(w, 0) >= 0 {
			return "", fmt.Errorf("word %d: %w", i+1, ErrNUL)
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		quote(&b, w)
	}
	return b.String(), nil
}

func quote(b *strings.Builder, w string) {
	b.WriteByte('\'')
	for len(w) > 0 {
		r, n := utf8.DecodeRuneInString(w)
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteString(`'"$(printf '`)
			for r == utf8.RuneError && n == 1 {
				fmt.Fprintf(b, `\%03o`, w[0])
				w = w[1:]
				r, n = utf8.DecodeRuneInString(w)
			}
			b.WriteString(`')"'`) // no such byte is a newline, which the expansion would drop at the end
			continue
		case r == '\'':
			b.WriteString(`'"'"'`)
		default:
			b.WriteString(w[:n])
		}
		w = w[n:]
	}
	b.WriteByte('\'')
}
