package sandbox

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestPlainWords(t *testing.T) {
	for line, want := range map[string][]string{
		"python3 a.py":             {"python3", "a.py"},
		"  python3\ta.py  ":        {"python3", "a.py"},
		`python3 'a b.py' "c d" e`: {"python3", "a b.py", "c d", "e"},
		`python3 a'b'"c"d`:         {"python3", "abcd"},
		`python3 '$HOME' ''`:       {"python3", "$HOME", ""},
		"":                         nil,
		"python3 $x":               nil,
		`python3 "$x"`:             nil,
		`python3 "a\n"`:            nil,
		"python3 a;b":              nil,
		"python3 'a":               nil,
		"python3 a\\ b":            nil,
		"python3 ~":                nil,
		"python3 *":                nil,
		"python3 a\nb":             nil,
		"python3 'a\nb'":           nil,
		"python3 ü":                nil,
		"python3 #a":               nil,
		"! python3 a":              nil,
	} {
		got, ok := plainWords(line)
		if ok != (want != nil) || ok && !slices.Equal(got, want) {
			t.Errorf("%q: %q %v, want %q", line, got, ok, want)
		}
	}
}

// Where words are plain, a shell makes the same of them.
func FuzzPlainWordsAsBash(f *testing.F) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		f.Skip("this machine has no bash")
	}
	for _, line := range []string{"a.py", "'a b' \"c\" d=e", "%1 -x +y @z a:b c,d", "''", "x'y'\"z\"", "a=b c", "-n", "\"a'b\"", "'a\"b' ="} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, ok := plainWords("python3 " + line)
		if !ok {
			return
		}
		cmd := exec.Command(bash, "-c", `python3() { for word; do printf '%s\0' "$word"; done; }; `+"python3 "+line)
		cmd.Env = []string{"PATH=/nowhere"}
		cmd.Dir = t.TempDir()
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		want := ""
		for _, word := range words[1:] {
			want += word + "\x00"
		}
		if string(out) != want {
			t.Errorf("%q: a shell makes %q of it, not %q", line, out, strings.Split(want, "\x00"))
		}
	})
}
