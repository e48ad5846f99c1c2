package docker

import (
	"bytes"
	"strings"
	"testing"
)

func frame(kind byte, size int, text string) string {
	return string([]byte{kind, 0, 0, 0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}) + text
}

func TestSplit(t *testing.T) {
	for name, c := range map[string]struct{ in, out, err, says string }{
		"both":               {frame(1, 3, "out") + frame(2, 3, "err") + frame(1, 2, "ly"), "outly", "err", ""},
		"empty":              {"", "", "", ""},
		"empty frame":        {frame(1, 0, "") + frame(2, 1, "x"), "", "x", ""},
		"cut in a head":      {frame(1, 1, "a") + "\x01\x00", "a", "", "cut off"},
		"cut in a frame":     {frame(1, 10, "abc"), "abc", "", "cut off"},
		"4 GB promised":      {frame(1, 1<<32-1, "abc"), "abc", "", "cut off"},
		"unknown kind":       {frame(9, 1, "a"), "", "", "damaged"},
		"an HTML page":       {"<html><body>no</body></html>", "", "", "damaged"},
		"error of an engine": {frame(3, 4, "oops"), "", "", "oops"},
	} {
		var out, err bytes.Buffer
		fate := split(strings.NewReader(c.in), &out, &err)
		if out.String() != c.out || err.String() != c.err {
			t.Errorf("%s: stdout %q, stderr %q", name, out.String(), err.String())
		}
		if c.says == "" && fate != nil || c.says != "" && (fate == nil || !strings.Contains(fate.Error(), c.says)) {
			t.Errorf("%s: %v does not say %q", name, fate, c.says)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte(frame(1, 3, "out") + frame(2, 3, "err")))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, err bytes.Buffer
		_ = split(bytes.NewReader(in), &out, &err)
		if out.Len()+err.Len() > len(in) {
			t.Errorf("%d bytes out of %d", out.Len()+err.Len(), len(in))
		}
	})
}

func TestAMeterStopsAtItsLimit(t *testing.T) {
	m := newMeter(10)
	for _, c := range []struct{ give, pass int }{{4, 4}, {6, 6}, {0, 0}, {3, 0}, {5, 0}} {
		if got := m.take(c.give); got != c.pass {
			t.Errorf("%d of %d bytes pass, want %d", got, c.give, c.pass)
		}
	}
	select {
	case <-m.over:
	default:
		t.Error("nobody was told")
	}
	if m.total() != 10 {
		t.Errorf("%d bytes were counted", m.total())
	}
}
