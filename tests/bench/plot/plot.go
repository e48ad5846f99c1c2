// Package plot draws how figures change with the size of something, as SVG: panels side by side over one quantity, all axes logarithmic, so that what is flat looks flat
// and what is proportional has a slope of one.
package plot

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Chart is one drawing.
type Chart struct {
	Title  string
	X      string // what grows
	Panels []Panel
}

// Panel is one pair of axes.
type Panel struct {
	Y     string // with its unit
	Lines []Line
}

// Line is one figure.
type Line struct {
	Name   string
	Points []Point
}

// Point is a measurement. Both have to be above 0; others are left out.
type Point struct{ X, Y float64 }

const (
	width, height           = 380.0, 300.0 // of a panel
	left, right, top, below = 62.0, 22.0, 46.0, 46.0
	row                     = 15.0 // of the legend
	gap                     = 8.0  // above it
)

var colours = []string{"#1f6fb4", "#d1495b", "#2e8b57", "#8d5fd3"}

// SVG draws the chart. It has a background, so that it can be read on dark pages too.
func (c Chart) SVG() string {
	var b strings.Builder
	deepest := 0
	var sizes []float64 // of all panels, so that they can be read side by side
	for _, p := range c.Panels {
		deepest = max(deepest, len(p.Lines))
		for _, l := range p.Lines {
			for _, q := range l.Points {
				if q.X > 0 && !math.IsInf(q.X, 0) {
					sizes = append(sizes, q.X)
				}
			}
		}
	}
	w, h := width*float64(len(c.Panels)), height+gap+row*float64(deepest)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" font-family="sans-serif" font-size="11">`+"\n", w, h, w, h)
	fmt.Fprintf(&b, `<rect width="%g" height="%g" fill="#ffffff"/>`+"\n", w, h)
	text(&b, w/2, 18, "middle", "14", c.Title)
	for i, p := range c.Panels {
		fmt.Fprintf(&b, `<g transform="translate(%g 0)">`+"\n", width*float64(i))
		p.draw(&b, c.X, sizes)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (p Panel) draw(b *strings.Builder, x string, sizes []float64) {
	var ys []float64
	for _, l := range p.Lines {
		for _, q := range l.good() {
			ys = append(ys, q.Y)
		}
	}
	if len(ys) == 0 {
		return
	}
	ax, ay := decades(sizes), decades(ys)
	atX := func(v float64) float64 { return left + ax.place(v)*(width-left-right) }
	atY := func(v float64) float64 { return height - below - ay.place(v)*(height-top-below) }
	for _, v := range ay.ticks() {
		fmt.Fprintf(b, `<path d="M%.1f %.1fH%.1f" stroke="#dddddd"/>`+"\n", left, atY(v), width-right)
		text(b, left-5, atY(v)+4, "end", "", number(v))
	}
	for _, v := range ax.ticks() {
		fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1f" stroke="#dddddd"/>`+"\n", atX(v), top, height-below)
		text(b, atX(v), height-below+15, "middle", "", number(v))
	}
	fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1fH%.1f" fill="none" stroke="#333333"/>`+"\n", left, top, height-below, width-right)
	text(b, left, top-8, "start", "", p.Y)
	text(b, (left+width-right)/2, height-below+31, "middle", "", x)
	for i, l := range p.Lines {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for j, q := range l.good() {
			path.WriteByte("ML"[min(j, 1)])
			fmt.Fprintf(&path, "%.1f %.1f", atX(q.X), atY(q.Y))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s: %s at %s</title></circle>`+"\n", atX(q.X), atY(q.Y), colour, html.EscapeString(l.Name), number(q.Y), number(q.X))
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", path.String(), colour)
		y := height + gap + row*float64(i)
		fmt.Fprintf(b, `<path d="M%.1f %.1fh18" stroke="%s" stroke-width="2"/>`+"\n", left, y-4, colour)
		text(b, left+24, y, "start", "", l.Name)
	}
}

func (l Line) good() (list []Point) {
	for _, q := range l.Points {
		if q.X > 0 && q.Y > 0 && !math.IsInf(q.X, 0) && !math.IsInf(q.Y, 0) {
			list = append(list, q)
		}
	}
	return list
}

// axis goes over whole powers of ten.
type axis struct{ from, to int }

func decades(values []float64) axis {
	a := axis{math.MaxInt, math.MinInt}
	for _, v := range values {
		e := math.Log10(v)
		a.from, a.to = min(a.from, int(math.Floor(e+1e-9))), max(a.to, int(math.Ceil(e-1e-9)))
	}
	if a.from == a.to {
		a.to++
	}
	return a
}

// place is where a value is, from 0 to 1.
func (a axis) place(v float64) float64 {
	return (math.Log10(v) - float64(a.from)) / float64(a.to-a.from)
}

func (a axis) ticks() (list []float64) {
	for e := a.from; e <= a.to; e++ {
		list = append(list, math.Pow10(e))
	}
	return list
}

func number(v float64) string {
	s := fmt.Sprintf("%.3g", v)
	if v >= 1000 {
		s = fmt.Sprintf("%.0f", v)
	}
	return s
}

func text(b *strings.Builder, x, y float64, anchor, size, s string) {
	if size != "" {
		size = ` font-size="` + size + `"`
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s"%s fill="#222222">%s</text>`+"\n", x, y, anchor, size, html.EscapeString(s))
}
