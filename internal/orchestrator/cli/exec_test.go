package cli

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestTheEscapeCharacterLeaves(t *testing.T) {
	for _, c := range []struct {
		in, out string
		left    bool
	}{
		{"ls\n", "ls\n", false},
		{"~.", "", true},
		{"ls\r~.more", "ls\r", true},
		{"a~.b", "a~.b", false},
		{"~~.x", "~.x", false},
		{"~x\n", "~x\n", false},
		{"~", "~", false},
		{"\n~\n~.", "\n~\n", true},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			left := false
			e := &escaper{in: wrap(strings.NewReader(c.in)), char: '~', lineStart: true, leave: func() { left = true }}
			out, err := io.ReadAll(e)
			if err != nil || string(out) != c.out || left != c.left {
				t.Errorf("%q %s: %q, left %v, %v", c.in, name, out, left, err)
			}
		}
	}
}
