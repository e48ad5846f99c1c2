package jsonform_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/jsonform/jsonformtest"
)

type inner struct {
	Words map[string]string
	More  []float64
}

type outer struct {
	Before string
	Name   string
	Never  *int
	Count  int64
	Size   uint64
	Share  float64
	Flag   bool
	At     time.Time
	Inner  inner
	Parts  map[string]inner
	After  []string
}

var writeInner = jsonform.Of(inner{map[string]string{"": ""}, []float64{0.5}},
	jsonform.At(map[string]string{"": ""}, func(w *jsonform.Writer, v inner) { jsonform.Map(w, v.Words, (*jsonform.Writer).Text) }),
	jsonform.At([]float64{0.5}, func(w *jsonform.Writer, v inner) { jsonform.List(w, v.More, (*jsonform.Writer).Float) }),
)

var sampleTime = time.Unix(1, 2).UTC()

var writeOuter = jsonform.Of(outer{
	Before: "always", Name: "name", Count: 2, Size: 3, Share: 0.25, Flag: true, At: sampleTime, Inner: inner{More: []float64{7}}, Parts: map[string]inner{}, After: []string{"end"},
},
	jsonform.At("name", func(w *jsonform.Writer, o *outer) { w.Text(o.Name) }),
	jsonform.At(2, func(w *jsonform.Writer, o *outer) { w.Int(o.Count) }),
	jsonform.At(3, func(w *jsonform.Writer, o *outer) { w.Uint(o.Size) }),
	jsonform.At(0.25, func(w *jsonform.Writer, o *outer) { w.Float(o.Share) }),
	jsonform.At(true, func(w *jsonform.Writer, o *outer) { w.Bool(o.Flag) }),
	jsonform.At(sampleTime, func(w *jsonform.Writer, o *outer) { w.Time(o.At) }),
	jsonform.At(inner{More: []float64{7}}, func(w *jsonform.Writer, o *outer) { writeInner(w, o.Inner) }),
	jsonform.At(struct{}{}, func(w *jsonform.Writer, o *outer) { jsonform.Map(w, o.Parts, writeInner) }),
)

// What a form writes is what encoding/json does, byte by byte, whatever the values are, and it refuses what that refuses.
func TestAFormIsWhatEncodingJSONMakes(t *testing.T) {
	text := rapid.OneOf(rapid.SampledFrom([]string{"", "\x80", "\x7f", "\x1f", "\u2028", "<&>", "\"", "\\"}), rapid.StringMatching(`[ -~]{0,20}`), rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 8), func(b []byte) string { return string(b) }))
	number := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, math.Copysign(0, -1), 1, -1, 1e-6, 9.99e-7, 1e21, 9.99e20, -1e21, 1e300, 5e-324, math.NaN(), math.Inf(1), math.Inf(-1)}))
	parts := rapid.Custom(func(t *rapid.T) inner {
		return inner{
			rapid.OneOf(rapid.Just(map[string]string(nil)), rapid.MapOfN(text, text, 0, 5)).Draw(t, "words"),
			rapid.OneOf(rapid.Just([]float64(nil)), rapid.SliceOfN(rapid.Float64(), 0, 3)).Draw(t, "more"),
		}
	})
	zones := rapid.SampledFrom([]*time.Location{time.UTC, time.FixedZone("east", 3*3600+60), time.Local})
	rapid.Check(t, func(t *rapid.T) {
		o := &outer{
			Before: "always", Name: text.Draw(t, "name"), Count: rapid.Int64().Draw(t, "count"), Size: rapid.Uint64().Draw(t, "size"), Share: number.Draw(t, "share"), Flag: rapid.Bool().Draw(t, "flag"),
			At:    time.Unix(rapid.OneOf(rapid.Int64Range(-62135596800-1e8, 253402300800+1e8), rapid.Just(int64(0))).Draw(t, "at"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).In(zones.Draw(t, "zone")),
			Inner: parts.Draw(t, "inner"), Parts: rapid.MapOfN(text, parts, 0, 3).Draw(t, "parts"), After: []string{"end"},
		}
		if got, want := jsonformtest.Written(func(w *jsonform.Writer) { writeOuter(w, o) }), jsonformtest.Encoded(o); got != want {
			t.Fatalf("written:  %s\nexpected: %s", got, want)
		}
	})
}

func TestAFormNeedsItsHolesInOrder(t *testing.T) {
	nothing := func(*jsonform.Writer, int) {}
	for name, holes := range map[string][]jsonform.Hole[int]{
		"one that is not there":         {jsonform.At("x", nothing)},
		"in another order":              {jsonform.At("b", nothing), jsonform.At("a", nothing)},
		"more than there are":           {jsonform.At("a", nothing), jsonform.At("a", nothing)},
		"a mark that is there twice":    {jsonform.At("twice", nothing)},
		"twice before the next":         {jsonform.At("twice", nothing), jsonform.At("end", nothing)},
		"one that cannot be encoded":    {jsonform.At(func() {}, nothing)},
		"a mark without a text, of NaN": {jsonform.At(math.NaN(), nothing)},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("a form was made")
				}
			}()
			jsonform.Of(struct{ A, B, C, D, E string }{"a", "b", "twice", "twice", "end"}, holes...)
		})
	}
}

// A writer that is used again knows nothing of before.
func TestAWriterIsUsedAgain(t *testing.T) {
	var w jsonform.Writer
	w.Value(func() {})
	if w.Err() == nil {
		t.Fatal("a function was written")
	}
	w.Value(1)
	if w.Err() == nil {
		t.Error("an error was forgotten")
	}
	w.Reset()
	w.Value([]string{"<&>"})
	n := w.Len()
	w.Text(" and more")
	w.Value(func() {})
	if w.Undo(n); w.Err() != nil || w.String() != `["<&>"]` {
		t.Errorf("%q, %v", w.String(), w.Err())
	}
}
