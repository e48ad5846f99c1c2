package shell_test

import (
	"os/exec"
	"strings"
	"testing"

	"rockpool/internal/shell"
)

func FuzzQuoteIsTakenBackByAShell(f *testing.F) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		f.Skip("there is no sh")
	}
	for _, s := range []string{"", "a b", "it's", `"$HOME" \`, "line\nbreak\ttab", "`id`; $(id)", "''", "-n", "ü\xff"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsRune(a+b, 0) {
			t.Skip("no word holds a NUL byte")
		}
		out, err := exec.Command(sh, "-c", `printf '%s\001%s\001' `+shell.Quote(a, b)).Output()
		if want := a + "\x01" + b + "\x01"; err != nil || string(out) != want {
			t.Errorf("got %q (%v), want %q", out, err, want)
		}
	})
}
