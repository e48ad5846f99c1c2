package sched

import (
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// spread counts a group's allocations by the values of one attribute.
type spread struct {
	attribute string
	weight    float64
	targets   map[string]float64 // wanted allocations by value; nil = even
	rest      float64            // wanted of each value that is no target
	counts    map[string]int
	values    map[int]int // how many values have so many
	least     int         // allocations of the value with the fewest
	most      int
}

const defaultSpreadWeight = 50

// newSpreads puts one over an attribute that differs on every node last: there it costs least; see section.
func newSpreads(all []model.Spread, total int) []*spread {
	out := make([]*spread, 0, len(all))
	for _, s := range all {
		sp := &spread{attribute: s.Attribute, weight: float64(s.Weight), counts: map[string]int{}, values: map[int]int{}}
		if sp.weight == 0 {
			sp.weight = defaultSpreadWeight
		}
		if len(s.Targets) > 0 {
			sp.targets = map[string]float64{}
			rest := 100
			for _, t := range s.Targets {
				sp.targets[t.Value] = float64(t.Percent) / 100 * float64(total)
				rest -= int(t.Percent)
			}
			sp.rest = float64(max(rest, 0)) / 100 * float64(total)
		}
		out = append(out, sp)
	}
	slices.SortStableFunc(out, func(a, b *spread) int {
		return boolInt(strings.Contains(a.attribute, "unique.")) - boolInt(strings.Contains(b.attribute, "unique."))
	})
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// noValue stands for nodes that do not have the attribute.
const noValue = "\x00"

func valueOf(n *model.Node, attribute string) string {
	if v, ok := resolve(n, attribute); ok {
		return v
	}
	return noValue
}

// know makes a value known, with n more allocations.
func (s *spread) know(value string, n int) {
	if value == noValue {
		return
	}
	c, known := s.counts[value]
	if known && n == 0 {
		return
	}
	if known {
		if s.values[c]--; s.values[c] == 0 {
			delete(s.values, c)
		}
	}
	c += n
	s.counts[value] = c
	s.values[c]++
	s.most = max(s.most, c)
	switch {
	case len(s.counts) == 1 || c < s.least:
		s.least = c
	case s.values[s.least] == 0: // this one was the last with so few, and has n more now
		s.least = c
		for v := range s.values {
			s.least = min(s.least, v)
		}
	}
}

// Wanted numbers that say that there is none.
const (
	wantEven = -1
	wantNone = -2 // the node does not have the attribute
)

func (s *spread) want(value string) float64 {
	if value == noValue {
		return wantNone
	}
	if s.targets == nil {
		return wantEven
	}
	if w, ok := s.targets[value]; ok {
		return w
	}
	return s.rest
}

// boost is high where a value has fewer allocations than its share: the wanted one, or without targets an even one. From -1 to 1.
func (s *spread) boost(want float64, count int) float64 {
	switch {
	case want == wantNone || want == 0:
		return -1
	case want > 0:
		return max((want-float64(count+1))/want, -1)
	case s.least == s.most:
		return 0
	case count < s.most: // emptier than the fullest is good, as full as it is bad
		return float64(s.most-count) / float64(s.most)
	}
	return -1
}
