package pool

import (
	"math"
	"slices"
	"time"
)

// The rules of an automatic size.
const (
	coverage  = 0.99             // share of claims that shall find a runner
	halfLife  = 15 * time.Minute // after which a claim counts half
	trace     = 0.5              // claims that count for less than this are not provided for
	hold      = 5 * time.Minute  // how long less must be needed before the pool shrinks
	leadShare = 0.9              // share of starts that take no longer than what is reckoned with
	minLead   = time.Second
	maxLead   = 10 * time.Minute
	starts    = 32 // that are remembered
	rescale   = 1 << 20
)

// demand learns how many runners must stand ready. Whoever is claimed is replaced after the time that a start takes, so a claim finds a runner if
// and only if fewer claims than the pool holds came within that time before it. For each claim it is therefore noted how many came within the
// last start time, itself included: the size that this claim needed. The target is the size that enough of the noted claims needed at most.
type demand struct {
	min, max int
	size     int
	low      int       // most that was needed since less than size was
	until    time.Time // no shrinking before

	recent []time.Time // arrivals within the lead, oldest first; at most max
	needed []float64   // weights of claims by the size that they needed; what is above max counts as max
	total  float64
	since  time.Time // when a claim had weight 1; later ones weigh more, which ages the older ones
}

// newDemand begins with the size that was given; what was learned before is kept.
func newDemand(s Spec, before *demand, now time.Time) *demand {
	d := before
	if d == nil {
		d = &demand{since: now}
	}
	d.size = s.Size
	d.bound(s.Min, s.Max)
	d.until, d.low = now.Add(hold), d.min
	return d
}

func (d *demand) bound(least, most int) {
	d.min, d.max = least, most
	d.size = min(max(d.size, least), most)
	for len(d.needed) > most+1 {
		last := len(d.needed) - 1
		d.needed[last-1] += d.needed[last]
		d.needed = d.needed[:last]
	}
	d.recent = d.recent[max(0, len(d.recent)-most):]
}

// weight is what a claim at now counts.
func (d *demand) weight(now time.Time) float64 {
	return math.Exp2(float64(max(0, now.Sub(d.since))) / float64(halfLife))
}

// arrive notes a claim. lead is the time that a start takes.
func (d *demand) arrive(lead time.Duration, now time.Time) {
	first := 0
	for first < len(d.recent) && now.Sub(d.recent[first]) > lead {
		first++
	}
	d.recent = slices.Delete(d.recent, 0, max(first, len(d.recent)+1-d.max))
	d.recent = append(d.recent, now)
	n := len(d.recent)
	w := d.weight(now)
	if w > rescale {
		for i := range d.needed {
			d.needed[i] /= w
		}
		d.total /= w
		d.since, w = now, 1
	}
	for len(d.needed) <= n {
		d.needed = append(d.needed, 0)
	}
	d.needed[n] += w
	d.total += w
}

// found takes over what a listing showed: it was chosen before, by this gateway or another one.
func (d *demand) found(warm int, now time.Time) {
	if warm > d.size {
		d.size = min(warm, d.max)
		d.until, d.low = now.Add(hold), d.min
	}
}

// need is the size that enough claims needed at most.
func (d *demand) need(now time.Time) int {
	allowed := max(trace*d.weight(now), (1-coverage)*d.total)
	above := 0.0
	for n := len(d.needed) - 1; n > 0; n-- {
		if above += d.needed[n]; above > allowed {
			return n
		}
	}
	return 0
}

// target is the size to have now, and when it is to be asked for again. It grows at once, and shrinks to what was needed at most for a while.
func (d *demand) target(now time.Time) (size int, again time.Time) {
	need := min(max(d.need(now), d.min), d.max)
	if need >= d.size {
		d.size, d.low, d.until = need, d.min, now.Add(hold)
	} else if d.low = max(d.low, need); !now.Before(d.until) {
		d.size, d.low, d.until = d.low, need, now.Add(hold)
	}
	if d.size > d.min {
		again = d.until
	}
	return d.size, again
}

// hits counts claims, and those that were served at once. Shares age like the demand.
type hits struct {
	claims, served             uint64
	recentClaims, recentServed float64
	at                         time.Time
}

func (h *hits) add(served bool, now time.Time) {
	age := 1.0
	if !h.at.IsZero() {
		age = math.Exp2(-float64(max(0, now.Sub(h.at))) / float64(halfLife))
	}
	h.at = now
	h.recentClaims, h.recentServed = h.recentClaims*age+1, h.recentServed*age
	h.claims++
	if served {
		h.served++
		h.recentServed++
	}
}

// lead is how long the last starts took, each from the moment it was missing until it was ready.
type lead struct {
	took []time.Duration
	next int // the one to replace
	most time.Duration
}

func (l *lead) add(took time.Duration) {
	if len(l.took) < starts {
		l.took = append(l.took, took)
	} else {
		l.took[l.next] = took
		l.next = (l.next + 1) % starts
	}
	sorted := slices.Clone(l.took)
	slices.Sort(sorted)
	l.most = sorted[int(leadShare*float64(len(sorted)-1))]
}

// time is what a start is reckoned to take.
func (l *lead) time() time.Duration { return min(max(l.most, minLead), maxLead) }
