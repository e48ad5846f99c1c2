package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"rockpool/tests/load"
)

// lines is how many of them the calls of a figure become, in the order of their ends: what compares runs needs several to tell a change from noise.
const lines = 10

// Format writes what was found in Go's benchmark format, after a description. Only the usual keys of that become configuration, by which runs are told apart; the rest is
// comment, so that runs of two days or two kernels can be compared.
func (t *Table) Format(w io.Writer, description [][2]string) error {
	var b strings.Builder
	Describe(&b, description)
	b.WriteString("Unit /s better=higher\n")
	for _, f := range t.Figures {
		if f.Unit != "" && f.Higher {
			fmt.Fprintf(&b, "Unit %s better=higher\n", f.Unit)
		}
	}
	for _, f := range t.Figures {
		if m := t.Found[f.Key]; m != nil {
			f.format(&b, m)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Describe writes a description as Format does.
func Describe(b *strings.Builder, description [][2]string) {
	for _, c := range description {
		if !slices.Contains([]string{"goos", "goarch", "cpu", "pkg"}, c[0]) {
			b.WriteString("# ")
		}
		fmt.Fprintf(b, "%s: %s\n", c[0], strings.Join(strings.Fields(c[1]), " "))
	}
}

func (f *Figure) format(b *strings.Builder, m *Measurement) {
	begin := m.Begin
	for _, part := range divide(m.Calls) {
		p := Measurement{Calls: part}
		fmt.Fprintf(b, "Benchmark%s %d %d p50-ns %d p90-ns %d p99-ns", f.Key, len(part), p.percentile(50), p.percentile(90), p.percentile(99))
		if end := part[len(part)-1].End; m.Rate > 0 && end.After(begin) {
			fmt.Fprintf(b, " %.6g /s", float64(len(part))/end.Sub(begin).Seconds())
			begin = end
		}
		b.WriteByte('\n')
	}
	var rest []string
	if len(m.Calls) == 0 {
		if m.P50 > 0 {
			rest = append(rest, fmt.Sprintf("%d p50-ns", m.P50))
		}
		if m.P99 > 0 {
			rest = append(rest, fmt.Sprintf("%d p99-ns", m.P99))
		}
		if m.Rate > 0 {
			rest = append(rest, fmt.Sprintf("%.6g /s", m.Rate))
		}
	}
	if f.Unit != "" {
		rest = append(rest, fmt.Sprintf("%.6g %s", m.Value, f.Unit))
	}
	if len(rest) > 0 {
		fmt.Fprintf(b, "Benchmark%s %d %s\n", f.Key, max(m.Count, 1), strings.Join(rest, " "))
	}
}

// divide makes equal parts of calls in order; few calls are one part.
func divide(calls []load.Sample) [][]load.Sample {
	n := lines
	if len(calls) < 2*lines {
		n = min(1, len(calls))
	}
	parts := make([][]load.Sample, n)
	for i := range parts {
		parts[i] = calls[len(calls)*i/n : len(calls)*(i+1)/n]
	}
	return parts
}
