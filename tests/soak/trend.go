package soak

import (
	"fmt"
	"math"
	"slices"
)

// series is one figure at moments without load.
type series struct {
	name   string
	unit   string
	values []float64
	// slack is how much it may have grown from the end of the warm-up to the end of the run, beside share, a part of its median.
	slack, share float64
	// leak is what an execution might leave behind that has to be found; 0 = nothing is said of that.
	leak float64
	runs []float64 // executions so far, at each of values
}

// finds says whether a leak for each execution would be found among what was seen.
func (s series) finds(leak float64) (bool, error) {
	more := make([]float64, len(s.values))
	for i, v := range s.values {
		more[i] = v + math.Floor(leak*s.runs[i])
	}
	s.values = more
	t, err := s.judge()
	return t.grows(), err
}

// warmUp is the part of a run in which buffers, caches and what is kept for a time fill up.
const warmUp = 1.0 / 3

// surely is how unlikely growth has to be by chance before it counts.
const surely = 0.005

// trend is what the moments after the warm-up say.
type trend struct {
	from, to float64 // of the line through them
	chance   float64 // that values in no order look so much like growth
	allowed  float64
}

func (t trend) grows() bool { return t.to-t.from > t.allowed && t.chance < surely }

// judge draws a line through the moments after the warm-up, by the median of the slopes of all pairs (Theil and Sen), which single odd moments do not move, and asks by
// Mann and Kendall's test whether later moments are higher more often than chance makes them. Both have to say growth: a jump that is over is none, and neither is a
// slope that noise may have.
func (s series) judge() (trend, error) {
	v := s.values[int(float64(len(s.values))*warmUp):]
	if len(v) < 6 {
		return trend{}, fmt.Errorf("%s: %d moments after the warm-up are too few to judge by", s.name, len(v))
	}
	var slopes []float64
	higher := 0
	for i := range v {
		for j := i + 1; j < len(v); j++ {
			slopes = append(slopes, (v[j]-v[i])/float64(j-i))
			switch {
			case v[j] > v[i]:
				higher++
			case v[j] < v[i]:
				higher--
			}
		}
	}
	slope := median(slopes)
	// The line goes through the median of what it leaves over.
	rest := make([]float64, len(v))
	for i := range v {
		rest[i] = v[i] - slope*float64(i)
	}
	from := median(rest)
	return trend{from: from, to: from + slope*float64(len(v)-1), chance: chance(v, higher), allowed: s.slack + s.share*math.Abs(median(v))}, nil
}

// chance is the one-sided probability of at least so many more higher pairs than lower ones, by the normal approximation with ties.
func chance(v []float64, higher int) float64 {
	n := float64(len(v))
	variance := n * (n - 1) * (2*n + 5)
	ties := map[float64]float64{}
	for _, x := range v {
		ties[x]++
	}
	for _, t := range ties {
		variance -= t * (t - 1) * (2*t + 5)
	}
	if higher <= 0 || variance <= 0 {
		return 1
	}
	z := (float64(higher) - 1) / math.Sqrt(variance/18)
	return math.Erfc(z/math.Sqrt2) / 2
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
