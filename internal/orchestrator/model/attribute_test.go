package model_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/orchestrator/model"
)

func TestAttributesAreReadAsJobsWriteThem(t *testing.T) {
	for text, want := range map[string]model.Attribute{
		"40 GiB":         model.IntOf(40, "GiB"),
		"40GiB":          model.IntOf(40, "GiB"),
		"1.5 GHz":        model.FloatOf(1.5, "GHz"),
		"-3":             model.IntOf(-3, ""),
		"7":              model.IntOf(7, ""),
		"8.0":            model.FloatOf(8, ""),
		"true":           model.BoolOf(true),
		"550.54.15":      model.TextOf("550.54.15"),
		"Tesla T4":       model.TextOf("Tesla T4"),
		"40 furlongs":    model.TextOf("40 furlongs"),
		"GiB":            model.TextOf("GiB"),
		"":               model.TextOf(""),
		"Infinity":       model.TextOf("Infinity"),
		"1e999":          model.TextOf("1e999"),
		"99999999999999": model.IntOf(99999999999999, ""),
	} {
		if got := model.ParseAttribute(text); !cmp.Equal(got, want) {
			t.Errorf("%q is read as %+v, not %+v", text, got, want)
		}
	}
}

func TestAttributesCompareByTheirUnits(t *testing.T) {
	for _, c := range []struct {
		a, b  string
		order int
		ok    bool
	}{
		{"40 GiB", "40960 MiB", 0, true}, {"40 GiB", "40 GB", 1, true}, {"999 MHz", "1 GHz", -1, true}, {"1500 mW", "1.5 W", 0, true},
		{"40 GiB", "40", 0, false}, {"40 GiB", "40 W", 0, false}, {"8.0", "8", 0, true}, {"7.5", "8", -1, true}, {"true", "true", 0, true},
		{"true", "1", 0, false}, {"abc", "abd", -1, true}, {"abc", "1", 0, false}, {"0 W", "0 W", 0, true},
	} {
		order, ok := model.ParseAttribute(c.a).Compare(model.ParseAttribute(c.b))
		if order != c.order || ok != c.ok {
			t.Errorf("%q against %q is %d, %v; want %d, %v", c.a, c.b, order, ok, c.order, c.ok)
		}
	}
}

func TestAttributesAreWrittenAsTheyAreRead(t *testing.T) {
	for _, a := range []model.Attribute{model.IntOf(40960, "MiB"), model.FloatOf(7.5, ""), model.BoolOf(false), model.TextOf("Disabled"), model.FloatOf(1.25, "GHz")} {
		if got := model.ParseAttribute(a.String()); !cmp.Equal(got, a) {
			t.Errorf("%+v comes back as %+v", a, got)
		}
	}
}
