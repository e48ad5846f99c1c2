package soak

import (
	"math/rand/v2"
	"testing"
)

func TestTrends(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	make := func(n int, f func(i int) float64) []float64 {
		var v []float64
		for i := range n {
			v = append(v, f(i))
		}
		return v
	}
	for _, c := range []struct {
		name   string
		values func() []float64
		grows  bool
	}{
		{"always the same", func() []float64 { return make(12, func(int) float64 { return 100 }) }, false},
		{"noise around a level", func() []float64 { return make(12, func(int) float64 { return 100 + 20*r.NormFloat64() }) }, false},
		{"growth in the warm-up alone", func() []float64 {
			return make(30, func(i int) float64 { return 100 + 10*float64(min(i, 10)) + r.NormFloat64() })
		}, false},
		{"saw teeth", func() []float64 { return make(40, func(i int) float64 { return 100 + float64(i%5)*10 }) }, false},
		{"one odd moment, the last", func() []float64 {
			return make(20, func(i int) float64 {
				if i == 19 {
					return 1000
				}
				return 100 + r.NormFloat64()
			})
		}, false},
		{"growth that is allowed", func() []float64 { return make(30, func(i int) float64 { return 100 + 0.2*float64(i) }) }, false},
		{"it shrinks", func() []float64 { return make(30, func(i int) float64 { return 500 - 10*float64(i) }) }, false},
		{"a leak", func() []float64 { return make(12, func(i int) float64 { return 100 + 5*float64(i) }) }, true},
		{"a leak in noise", func() []float64 {
			return make(60, func(i int) float64 { return 100 + 2*float64(i) + 10*r.NormFloat64() })
		}, true},
		{"a leak with one odd moment", func() []float64 {
			return make(30, func(i int) float64 {
				if i == 15 {
					return 5000
				}
				return 100 + 5*float64(i)
			})
		}, true},
		{"one more each time, of few", func() []float64 { return make(18, func(i int) float64 { return float64(i) }) }, true},
	} {
		wrong := 0
		for range 200 {
			got, err := series{name: c.name, values: c.values(), slack: 5, share: 0.05}.judge()
			if err != nil {
				t.Fatal(err)
			}
			if got.grows() != c.grows {
				wrong++
			}
		}
		if wrong > 6 { // noise alone is odd once in two hundred, and hides a leak as seldom
			t.Errorf("%s: judged wrongly in %d of 200 runs", c.name, wrong)
		}
	}
	if _, err := (series{values: make(7, func(int) float64 { return 1 })}).judge(); err == nil {
		t.Error("few moments are judged")
	}
}
