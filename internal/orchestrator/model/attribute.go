package model

import (
	"cmp"
	"math"
	"strconv"
	"strings"
)

// AttributeKind says which value of an attribute counts.
type AttributeKind uint8

// Kinds of attributes.
const (
	TextAttribute AttributeKind = iota
	IntAttribute
	FloatAttribute
	BoolAttribute
)

// Attribute is a value with its type, and for numbers with a unit of Nomad's: W, MHz, MiB, MB/s and so on.
type Attribute struct {
	Kind  AttributeKind `codec:",omitempty"`
	Text  string        `codec:",omitempty"`
	Int   int64         `codec:",omitempty"`
	Float float64       `codec:",omitempty"`
	Bool  bool          `codec:",omitempty"`
	Unit  string        `codec:",omitempty"` // of numbers; "" = none
}

// TextOf, IntOf, FloatOf and BoolOf make attributes.
func TextOf(s string) Attribute            { return Attribute{Text: s} }
func IntOf(n int64, unit string) Attribute { return Attribute{Kind: IntAttribute, Int: n, Unit: unit} }
func FloatOf(f float64, unit string) Attribute {
	return Attribute{Kind: FloatAttribute, Float: f, Unit: unit}
}
func BoolOf(b bool) Attribute { return Attribute{Kind: BoolAttribute, Bool: b} }
func (a Attribute) number() (n float64, ok bool) {
	return cmp.Or(float64(a.Int), a.Float), a.Kind == IntAttribute || a.Kind == FloatAttribute
}

// String is the attribute as a job would write it: "40960 MiB".
func (a Attribute) String() string {
	var s string
	switch a.Kind {
	case IntAttribute:
		s = strconv.FormatInt(a.Int, 10)
	case FloatAttribute:
		s = strconv.FormatFloat(a.Float, 'g', -1, 64)
	case BoolAttribute:
		return strconv.FormatBool(a.Bool)
	default:
		return a.Text
	}
	if a.Unit != "" {
		s += " " + a.Unit
	}
	return s
}

// units are Nomad's, by what they measure and how much of its base unit each is.
var units = map[string]struct {
	base   string
	factor float64
}{
	"B": {"B", 1}, "kB": {"B", 1e3}, "KB": {"B", 1e3}, "MB": {"B", 1e6}, "GB": {"B", 1e9}, "TB": {"B", 1e12}, "PB": {"B", 1e15}, "EB": {"B", 1e18},
	"KiB": {"B", 1 << 10}, "MiB": {"B", 1 << 20}, "GiB": {"B", 1 << 30}, "TiB": {"B", 1 << 40}, "PiB": {"B", 1 << 50}, "EiB": {"B", 1 << 60},
	"B/s": {"B/s", 1}, "kB/s": {"B/s", 1e3}, "KB/s": {"B/s", 1e3}, "MB/s": {"B/s", 1e6}, "GB/s": {"B/s", 1e9}, "TB/s": {"B/s", 1e12}, "PB/s": {"B/s", 1e15}, "EB/s": {"B/s", 1e18},
	"KiB/s": {"B/s", 1 << 10}, "MiB/s": {"B/s", 1 << 20}, "GiB/s": {"B/s", 1 << 30}, "TiB/s": {"B/s", 1 << 40}, "PiB/s": {"B/s", 1 << 50}, "EiB/s": {"B/s", 1 << 60},
	"Hz": {"Hz", 1}, "MHz": {"Hz", 1e6}, "GHz": {"Hz", 1e9},
	"mW": {"W", 1e-3}, "W": {"W", 1}, "kW": {"W", 1e3}, "MW": {"W", 1e6}, "GW": {"W", 1e9},
}

// ParseAttribute reads an attribute as jobs write it: a number with or without a unit, true or false, else a text.
func ParseAttribute(s string) Attribute {
	text := strings.TrimSpace(s)
	if text == "true" || text == "false" {
		return BoolOf(text == "true")
	}
	end := strings.LastIndexAny(text, "0123456789.") + 1
	number, unit := text[:end], strings.TrimSpace(text[end:])
	if _, known := units[unit]; !known && unit != "" || number == "" {
		return TextOf(s)
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		return IntOf(n, unit)
	}
	if f, err := strconv.ParseFloat(number, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
		return FloatOf(f, unit)
	}
	return TextOf(s)
}

// In is a number in another unit that measures the same; false = it is no number or measures something else.
func (a Attribute) In(unit string) (n float64, ok bool) {
	n, ok = a.number()
	from, to := units[a.Unit], units[unit]
	if !ok || from.base == "" || from.base != to.base {
		return 0, false
	}
	return n * from.factor / to.factor, true
}

// KnownUnit reports whether a unit may follow a number.
func KnownUnit(unit string) bool { _, known := units[unit]; return known }

// Compare orders two attributes, numbers by their units. They cannot be compared when they are of different kinds or measure different things; a number without a
// unit compares with those without one alone.
func (a Attribute) Compare(b Attribute) (order int, ok bool) {
	x, numeric := a.number()
	y, also := b.number()
	switch {
	case numeric && also:
		p, q := units[a.Unit], units[b.Unit]
		if p.base != q.base {
			return 0, false
		}
		if a.Unit == b.Unit {
			if a.Kind == IntAttribute && b.Kind == IntAttribute {
				return cmp.Compare(a.Int, b.Int), true
			}
			return cmp.Compare(x, y), true
		}
		return cmp.Compare(x*p.factor, y*q.factor), true
	case a.Kind != b.Kind:
		return 0, false
	case a.Kind == BoolAttribute:
		if a.Bool == b.Bool {
			return 0, true
		}
		return 1, true // they differ; callers ask for no order of the two
	}
	return cmp.Compare(a.Text, b.Text), true
}
