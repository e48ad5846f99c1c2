package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// table writes rows in columns. The first row are the headings.
func table(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // an error of w shows with the next write
}

// pairs writes names and values.
func pairs(w io.Writer, list ...string) {
	rows := make([][]string, 0, len(list)/2)
	for i := 0; i+1 < len(list); i += 2 {
		rows = append(rows, []string{list[i], "= " + list[i+1]})
	}
	table(w, rows)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// short is the first part of an id.
func short(id string) string {
	if len(id) > 8 && strings.Count(id, "-") == 4 {
		return id[:8]
	}
	return id
}

func when(ns int64) string {
	if ns == 0 {
		return "-"
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339)
}

func val[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func itoa[T ~int | ~int64 | ~uint64 | ~uint16](n T) string { return strconv.FormatInt(int64(n), 10) }

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}
