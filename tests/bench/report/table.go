package report

import (
	"fmt"
	"io"
	"strings"
)

// Table is all figures in their order, with what a run found of them.
type Table struct {
	Figures []Figure
	Found   map[string]*Measurement // by key
	Missing map[string]string       // by key: why there is no measurement
	Why     string                  // the same for all others; empty = they were not asked for, and are left out
}

// Markdown writes the table. Figures without a measurement that have a budget are told, with the reason.
func (t *Table) Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| figure | budget | p50 | p90 | p99 | rate | value | n | others | held |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	held, of := 0, 0
	for _, f := range t.Figures {
		m := t.Found[f.Key]
		if len(f.Bounds) > 0 {
			of++
		}
		verdict := ""
		switch {
		case m == nil && len(f.Bounds) == 0:
			continue
		case m == nil:
			why := t.Missing[f.Key]
			if why == "" {
				why = t.Why
			}
			if why == "" {
				of--
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | | | | | | | | not measured: %s |\n", f.Name, f.budget(), strings.ReplaceAll(why, "\n", " "))
			continue
		case len(f.Bounds) == 0:
		case f.Held(m):
			verdict = "yes"
			held++
		default:
			verdict = "**no**"
		}
		rate, value, n, others := "", "", "", ""
		if m.Rate > 0 {
			rate = fmt.Sprintf("%.1f/s", m.Rate)
		}
		if f.Unit != "" {
			value = fmt.Sprintf("%.4g %s", m.Value, f.Unit)
		}
		if m.Note != "" {
			value = strings.TrimPrefix(value+"; "+m.Note, "; ")
		}
		if count := m.Count + len(m.Calls); count > 0 {
			n = fmt.Sprint(count)
		}
		if m.Others >= 0 {
			others = fmt.Sprintf("%.2f", m.Others)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", f.Name, f.budget(), span(m.percentile(50)), span(m.percentile(90)), span(m.percentile(99)),
			rate, value, n, others, verdict)
	}
	fmt.Fprintf(&b, "\nHeld: %d of %d budgets. The column \"others\" is the cores that everything else on the machine used while the figure was taken.\n", held, of)
	_, err := io.WriteString(w, b.String())
	return err
}
