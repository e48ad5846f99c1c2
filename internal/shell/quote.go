// Package shell makes shell text of data: the one place where that is done.
package shell

import "strings"

// Quote makes words of a POSIX shell that stand for exactly the given strings, separated by spaces. A NUL byte cannot be part
// of a word.
func Quote(words ...string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("'" + strings.ReplaceAll(w, "'", `'"'"'`) + "'")
	}
	return b.String()
}
