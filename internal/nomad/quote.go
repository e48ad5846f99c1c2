package nomad

import "strings"

// quote makes a word of a POSIX shell that stands for exactly s. It is the one place where data becomes shell text, and only
// used where a cluster offers nothing better. A NUL byte cannot be part of a word.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}
