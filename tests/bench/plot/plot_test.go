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
