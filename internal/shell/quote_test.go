package shell_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"

	"rockpool/internal/shell"
)

// shells are those that are installed, each with what runs a script in it.
func shells(t testing.TB) map[string][]string {
	found := map[string][]string{}
	for name, argv := range map[string][]string{"bash": {"bash", "-p", "-c"}, "dash": {"dash", "-c"}, "busybox": {"busybox", "sh", "-c"}, "sh": {"sh", "-c"}} {
		if p, err := exec.LookPath(argv[0]); err == nil {
			found[name] = append([]string{p}, argv[1:]...)
		}
	}
	if len(found) == 0 {
		t.Skip("there is no shell")
	}
	return found
}

var words = []string{
	"", "a b", "it's", `"$HOME" \`, "line\nbreak\ttab", "\n", "end\n\n", "`id`; $(id)", "''", "-n", "ü\xff", "\xff\n", "\xc3", "a\xed\xa0\x80b'\xfe", "\ufffd", "%s\\n", "*", "~", "!x", "\x01\x7f\r",
	"\\377", "$'x'", "${x}", "#", "\u2028",
}

func check(t *testing.T, shells map[string][]string, words ...string) {
	t.Helper()
	text, err := shell.Quote(words...)
	if err != nil {
		t.Fatal(err)
	}
	if !utf8.ValidString(text) {
		t.Errorf("the text is not UTF-8: %q", text)
	}
	want := strings.Join(words, "\x00") + "\x00"
	for name, argv := range shells {
		for _, locale := range []string{"C", "C.UTF-8"} {
			cmd := exec.Command(argv[0], append(argv[1:], `set -- `+text+`; printf '%s\000' "$@"`)...)
			cmd.Env = append(cmd.Environ(), "LC_ALL="+locale)
			if out, err := cmd.Output(); err != nil || string(out) != want {
				t.Errorf("%s with LC_ALL=%s: got %q (%v), want %q, from %s", name, locale, out, err, want, text)
			}
		}
	}
}

func TestWordsComeBackFromEveryShell(t *testing.T) {
	all := shells(t)
	for _, w := range words {
		check(t, all, w)
	}
	check(t, all, words...)
	var bytes []string
	for b := 1; b < 256; b++ {
		bytes = append(bytes, string([]byte{byte(b)}), "x"+string([]byte{byte(b)})+"'")
	}
	check(t, all, bytes...)
}

func TestANULIsRefused(t *testing.T) {
	if text, err := shell.Quote("a", "b\x00c"); !errors.Is(err, shell.ErrNUL) || text != "" {
		t.Errorf("got %q, %v", text, err)
	}
}

func FuzzQuoteIsTakenBackByAShell(f *testing.F) {
	all := shells(f)
	for i, w := range words {
		f.Add(w, words[len(words)-1-i])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsRune(a+b, 0) {
			if _, err := shell.Quote(a, b); !errors.Is(err, shell.ErrNUL) {
				t.Errorf("a NUL byte gave %v", err)
			}
			return
		}
		check(t, all, a, b)
	})
}
