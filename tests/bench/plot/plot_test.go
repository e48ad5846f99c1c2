package plot_test

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"

	"rockpool/tests/bench/plot"
)

func chart(points ...plot.Point) plot.Chart {
	return plot.Chart{Title: "Cost & <size>", X: "runners", Panels: []plot.Panel{
		{Y: "ms", Lines: []plot.Line{{Name: "claim <p50>", Points: points}, {Name: "echo", Points: points}}}, {Y: "MB", Lines: []plot.Line{{Name: "memory", Points: points}}},
	}}
}

func TestItIsWellFormed(t *testing.T) {
	for name, points := range map[string][]plot.Point{
		"nothing": nil, "one": {{10, 5}}, "some": {{10, 0.5}, {100, 2}, {1000, 70}}, "no logarithm": {{0, 5}, {10, 0}, {-1, -1}, {10, math.Inf(1)}, {math.NaN(), 1}, {100, 3}},
	} {
		svg := chart(points...).SVG()
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, svg)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s: there are coordinates that are no numbers", name)
		}
	}
}

// Flat looks flat, and what grows goes up.
func TestPoints(t *testing.T) {
	var ys []string
	for part := range strings.SplitSeq(chart(plot.Point{10, 10}, plot.Point{100, 10}, plot.Point{1000, 100}).SVG(), "cy=\"") {
		y, _, _ := strings.Cut(part, "\"")
		ys = append(ys, y)
	}
	if len(ys) != 10 || ys[1] != ys[2] || ys[2] == ys[3] {
		t.Errorf("%q", ys)
	}
}

// Panels have the same sizes at the same places, also one that has nothing to draw at some of them.
func TestPanelsAreReadSideBySide(t *testing.T) {
	c := chart(plot.Point{X: 10, Y: 1}, plot.Point{X: 1000, Y: 1})
	c.Panels[1].Lines[0].Points = []plot.Point{{X: 10, Y: 0}, {X: 1000, Y: 5}}
	var xs []string
	for part := range strings.SplitSeq(c.SVG(), "cx=\"") {
		x, _, _ := strings.Cut(part, "\"")
		xs = append(xs, x)
	}
	if len(xs) != 6 || xs[2] != xs[4] || xs[5] != xs[2] || xs[1] == xs[2] {
		t.Errorf("%q", xs)
	}
}
