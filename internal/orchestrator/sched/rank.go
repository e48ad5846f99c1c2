package sched

import (
	"math"
	"slices"

	"rockpool/internal/orchestrator/model"
)

// ordered is what a heap holds: the first is the one before all others.
type ordered[T any] interface {
	before(T) bool
	at(int) // tells it where it stands
}

type heap[T ordered[T]] []T

func (h *heap[T]) push(v T) {
	*h = append(*h, v)
	h.up(len(*h) - 1)
}

func (h *heap[T]) remove(i int) {
	last := len(*h) - 1
	if i != last {
		(*h)[i] = (*h)[last]
	}
	var none T
	(*h)[last] = none
	*h = (*h)[:last]
	if i < last {
		h.fix(i)
	}
}

func (h *heap[T]) fix(i int) {
	if !h.down(i) {
		h.up(i)
	}
}

func (h heap[T]) up(i int) {
	v := h[i]
	for i > 0 {
		parent := (i - 1) / 2
		if !v.before(h[parent]) {
			break
		}
		h[i] = h[parent]
		h[i].at(i)
		i = parent
	}
	h[i] = v
	v.at(i)
}

func (h heap[T]) down(i int) bool {
	v, from := h[i], i
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(v) {
			break
		}
		h[i] = h[child]
		h[i].at(i)
		i = child
	}
	h[i] = v
	v.at(i)
	return i > from
}

// Candidates whose spread part of the score is equal stand together. A section has one value for each spread but the last; within it a bucket has one value
// of the last spread too, and a level has the buckets for whose values as many are wanted and as many are there. So a placement changes the level of one
// bucket in each section, whatever the number of nodes.
type section struct {
	values  []string // of all spreads but the last
	buckets map[string]*bucket
	levels  []*level
	byRank  map[rank]*level
}

type rank struct {
	want  float64 // share of the value; see spread.want
	count int
}

type level struct {
	rank    rank
	buckets heap[*bucket]
}

type bucket struct {
	section    *section
	value      string // of the last spread
	level      *level
	candidates heap[*candidate]
	pos        int
}

func (b *bucket) before(o *bucket) bool { return b.candidates[0].before(o.candidates[0]) }
func (b *bucket) at(i int)              { b.pos = i }

// last is the spread by which buckets are told apart; nil = there is none.
func (f *field) last() *spread {
	if len(f.spreads) == 0 {
		return nil
	}
	return f.spreads[len(f.spreads)-1]
}

func (f *field) add(c *candidate) {
	key := ""
	var values []string
	value := ""
	for i, sp := range f.spreads {
		v := valueOf(c.seat.Node, sp.attribute)
		sp.know(v, 0)
		if i == len(f.spreads)-1 {
			value = v
		} else {
			values = append(values, v)
			key += v + "\x00"
		}
	}
	s := f.byKey[key]
	if s == nil {
		s = &section{values: values, buckets: map[string]*bucket{}, byRank: map[rank]*level{}}
		f.byKey[key] = s
		f.sections = append(f.sections, s)
	}
	b := s.buckets[value]
	if b == nil {
		b = &bucket{section: s, value: value}
		s.buckets[value] = b
	}
	c.bucket = b
	b.candidates.push(c)
	if len(b.candidates) == 1 {
		f.settle(b)
	} else if c.pos == 0 {
		b.level.buckets.fix(b.pos)
	}
	f.bySlot[c.seat.slot] = c
	f.live++
}

// settle puts a bucket that is in no level into the right one.
func (f *field) settle(b *bucket) {
	var r rank
	if sp := f.last(); sp != nil {
		r = rank{sp.want(b.value), sp.counts[b.value]}
	}
	l := b.section.byRank[r]
	if l == nil {
		l = &level{rank: r}
		b.section.byRank[r] = l
		b.section.levels = append(b.section.levels, l)
	}
	b.level = l
	l.buckets.push(b)
}

func (f *field) leave(b *bucket) {
	l := b.level
	l.buckets.remove(b.pos)
	b.level = nil
	if len(l.buckets) == 0 {
		s := b.section
		delete(s.byRank, l.rank)
		s.levels = slices.DeleteFunc(s.levels, func(o *level) bool { return o == l })
	}
}

// drop takes a candidate out for good.
func (f *field) drop(c *candidate) {
	b := c.bucket
	if b == nil {
		return // it never was among them
	}
	if len(b.candidates) == 1 {
		f.leave(b)
		b.candidates = nil
	} else {
		b.candidates.remove(int(c.pos))
		b.level.buckets.fix(b.pos)
	}
	c.bucket = nil
	delete(f.bySlot, c.seat.slot)
	f.live--
}

// moved puts a candidate where its new score belongs.
func (f *field) moved(c *candidate) {
	if b := c.bucket; b != nil {
		b.candidates.fix(int(c.pos))
		b.level.buckets.fix(b.pos)
	}
}

// grown takes notice that one more is placed on a candidate.
func (f *field) grown(c *candidate) {
	f.same[c.seat.slot]++
	f.rate(c)
	f.moved(c)
	for i, sp := range f.spreads {
		v := valueOf(c.seat.Node, sp.attribute)
		sp.know(v, 1)
		if i < len(f.spreads)-1 {
			continue
		}
		for _, s := range f.sections {
			if b := s.buckets[v]; b != nil && b.level != nil {
				f.leave(b)
				f.settle(b)
			}
		}
	}
}

// best is the candidate with the highest score, or nil.
func (f *field) best() *candidate {
	var found *candidate
	top := math.Inf(-1)
	for _, s := range f.sections {
		fixed, weights := 0.0, 0.0
		for i, v := range s.values {
			fixed += f.spreads[i].weight * f.spreads[i].boost(f.spreads[i].want(v), f.spreads[i].counts[v])
			weights += f.spreads[i].weight
		}
		for _, l := range s.levels {
			c := l.buckets[0].candidates[0]
			score := c.base
			if sp := f.last(); sp != nil {
				score += spreadFactor * (fixed + sp.weight*sp.boost(l.rank.want, l.rank.count)) / (weights + sp.weight)
			}
			if found == nil || score > top || score == top && c.tighter(found) {
				found, top = c, score
			}
		}
	}
	return found
}

// spreadFactor makes a spread, which somebody asked for, count more than what nobody did.
const spreadFactor = 2

// What a node with devices counts less for a group that asks for none. Fit and anti-affinity cannot make up for it. A group with affinities says itself where it
// likes to be.
const (
	keepOff      = 2
	keepOffLiked = 0.5
)

// wasteful is what a node with devices counts less for a group that needs none.
func (f *field) wasteful(s *Seat) float64 {
	switch {
	case len(f.ask.wishes) > 0 || len(s.Node.Resources.Devices) == 0:
		return 0
	case f.weights > 0:
		return keepOffLiked
	}
	return keepOff
}

// rate sums up the parts of a candidate's score but for the spread. Who asks for devices is packed by these: fit and anti-affinity only decide where that is equal.
func (f *field) rate(c *candidate) {
	if len(f.ask.wishes) == 0 {
		c.base = c.fixed + f.fit(c.seat) + f.antiAffinity(c.seat)
	} else {
		f.pack(c) // when nothing is left, taking it tells
		c.base = c.fixed + c.suited.liked
		c.suited.rest = f.fit(c.seat) + f.antiAffinity(c.seat)
	}
	if c.seat.Node.ID == f.avoided {
		c.base--
	}
}

// pack finds out how well the devices of a candidate's node suit the group, or which dimension does not suffice.
func (f *field) pack(c *candidate) string {
	p := picker{node: c.seat.Node, used: *f.usage(c.seat), wishes: f.ask.wishes}
	if why := p.pick(); why != "" {
		return why
	}
	c.suited = &suited{packed: p.packed}
	if f.opts.Spread {
		c.suited.packed.free = -p.packed.free
	}
	if f.ask.weights > 0 {
		c.suited.liked = p.liked / f.ask.weights
	}
	return ""
}

// antiAffinity keeps the allocations of a group apart: those of a service from the first on, those of batch work only where they are few.
func (f *field) antiAffinity(s *Seat) float64 {
	same := f.same[s.slot]
	if same == 0 {
		return 0
	}
	if f.job.Type == model.JobTypeService {
		return -float64(same) / float64(same+1)
	}
	return -float64(same+1) / float64(max(f.g.Count, same+1))
}

// fit is near 1 for a node that will be full, or with the spread algorithm for one that will be empty. The formula is that of Google's "best fit v3",
// which Nomad uses too: 20 - (10^free cpu + 10^free memory), here from 0 to 1.
func (f *field) fit(s *Seat) float64 {
	u := f.usage(s)
	free := func(used, all int) float64 {
		if all <= 0 {
			return 0
		}
		return 1 - float64(used)/float64(all)
	}
	total := math.Exp(math.Ln10*free(u.CPU+f.ask.size.CPU, s.cpu)) + math.Exp(math.Ln10*free(u.MemoryMB+f.ask.size.MemoryMB, s.mem)) // 2 when full, 20 when empty
	if f.opts.Spread {
		return (total - 2) / 18
	}
	return (20 - total) / 18
}

func (f *field) affinity(s *Seat) float64 {
	if v, known := f.liked[s.class]; known {
		return v
	}
	sum, n := 0.0, s.Node
	for _, a := range f.affinities {
		if Matches(n, a.LTarget, a.Operand, a.RTarget) {
			sum += float64(a.Weight)
		}
	}
	if f.liked != nil {
		f.liked[s.class] = sum / f.weights
	}
	return sum / f.weights
}

// spreadScore is the spread part of a node's score, from -1 to 1.
func (f *field) spreadScore(n *model.Node) float64 {
	sum, weights := 0.0, 0.0
	for _, sp := range f.spreads {
		v := valueOf(n, sp.attribute)
		sum += sp.weight * sp.boost(sp.want(v), sp.counts[v])
		weights += sp.weight
	}
	return sum / weights
}

// Of the best nodes, how many are shown with a placement; and for how many placements of a group. Those beyond show the node that was chosen.
const (
	shownScores     = 3
	shownPlacements = 8
)

// scores explains what the chosen node and the next best ones were given.
func (f *field) scores(c *candidate) []model.NodeScore {
	out := []model.NodeScore{f.score(c)}
	if len(f.placed) >= shownPlacements {
		return out
	}
	for _, s := range f.sections {
		for _, l := range s.levels {
			for _, b := range l.buckets[:min(len(l.buckets), shownScores)] {
				for _, o := range b.candidates[:min(len(b.candidates), shownScores)] {
					if o != c {
						out = append(out, f.score(o))
					}
				}
			}
		}
	}
	slices.SortStableFunc(out[1:], func(a, b model.NodeScore) int {
		switch {
		case a.Norm > b.Norm:
			return -1
		case a.Norm < b.Norm:
			return 1
		}
		return 0
	})
	return slices.Clip(out[:min(len(out), shownScores)])
}

// score names the parts as Nomad's clients know them.
func (f *field) score(c *candidate) model.NodeScore {
	s := model.NodeScore{NodeID: c.seat.Node.ID, Scores: map[string]float64{"binpack": f.fit(c.seat)}}
	sum := c.base
	if v := f.antiAffinity(c.seat); v != 0 {
		s.Scores["job-anti-affinity"] = v
	}
	if c.seat.Node.ID == f.avoided {
		s.Scores["node-reschedule-penalty"] = -1
	}
	if v := f.wasteful(c.seat); v > 0 {
		s.Scores["devices"] = -v
	}
	if len(f.ask.wishes) > 0 {
		s.Scores["device-fit"] = c.suited.packed.score()
		sum += c.suited.packed.score() + c.suited.rest
	}
	if f.ask.weights > 0 {
		s.Scores["devices"] = c.suited.liked
	}
	if f.weights > 0 {
		s.Scores["node-affinity"] = f.affinity(c.seat)
	}
	if len(f.spreads) > 0 {
		v := f.spreadScore(c.seat.Node)
		s.Scores["allocation-spread"] = v
		sum += spreadFactor * v
	}
	s.Norm = sum / f.parts
	return s
}
