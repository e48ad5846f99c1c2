package pool

import (
	"math"
	"time"
)

// When a claimed runner is replaced. Whoever claims one uploads and executes right away, and to make a sandbox takes as much of a processor as that: so replacements wait
// for a moment without claims, as long as there are plenty of runners.
const (
	breath       = 25 * time.Millisecond  // without a claim, before claimed runners are replaced
	plenty       = 0.75                   // share of the pool that has to be idle for them to wait
	ahead        = 500 * time.Millisecond // that the idle ones have to last at the present pace, or they do not wait
	few          = 4                      // are made at a time at most where they could wait, or
	fewOf        = 64                     // one for so many of the pool
	slow         = time.Second            // who starts for longer is not waited for: it may hang, or there is no room for it
	paceHalfLife = time.Second
)

// pace is how fast runners are claimed, and when the last one was.
type pace struct {
	weight float64 // of the claims, each of which counts half after paceHalfLife
	at     time.Time
}

func (p *pace) add(now time.Time) {
	p.weight = p.weight*p.aged(now) + 1
	p.at = now
}

func (p *pace) aged(now time.Time) float64 {
	if p.at.IsZero() {
		return 0
	}
	return math.Exp2(-float64(max(0, now.Sub(p.at))) / float64(paceHalfLife))
}

// within is how many claims come within d if they go on like this.
func (p *pace) within(d time.Duration, now time.Time) float64 {
	return p.weight * p.aged(now) * math.Ln2 * float64(d) / float64(paceHalfLife)
}

// replaceable is how many of the missing runners may be made now: for each breath that nobody has claimed one more at a time, or up to few where nearly as many are missing as may
// be. The next claim may come soon, and a moment without claims may be one in which all who claim wait for a processor. Of the others, next says when to ask again if
// nothing happens; zero: they need not wait, or only for the outcome of what is under way.
func (e *env) replaceable(missing, size int, now time.Time) (n int, next time.Time) {
	idle := float64(len(e.ready.list))
	if idle < plenty*float64(size) || idle < e.pace.within(ahead, now) {
		return missing, time.Time{}
	}
	underway := e.count[1][Creating]
	for _, r := range e.starting.list {
		if late := r.since.Add(slow); now.Before(late) {
			underway++
			next = earlier(next, late)
		}
	}
	most := max(few, size/fewOf)
	each := 1 + (few-1)*min(1, (1-idle/float64(size))/(1-plenty)) // in a breath
	breaths := math.Floor(float64(max(0, now.Sub(e.pace.at))) / float64(breath))
	n = min(missing, max(0, min(int(breaths*each), most)-underway))
	if n == missing {
		return n, time.Time{}
	}
	if underway += n; underway < most {
		next = earlier(next, e.pace.at.Add(time.Duration(math.Ceil(float64(underway+1)/each))*breath))
	}
	return n, next
}
