package ratio

import (
	"math/rand/v2"
	"testing"
	"time"
)

// noisy is a block on a machine where others take the processor at times: most operations wait for them, some for long, and each costs more CPU time while caches
// are shared.
func noisy(r *rand.Rand, wall, cpu time.Duration, n int) block {
	crowd := 1 + 0.3*r.Float64() // of the minute in which the block is taken
	var b block
	for range n {
		w := float64(wall) * crowd
		if r.IntN(3) > 0 {
			w += r.ExpFloat64() * float64(5*time.Millisecond)
		}
		b.walls = append(b.walls, time.Duration(w))
		b.cpu += time.Duration(float64(cpu) * crowd)
	}
	b.cpu = b.cpu.Truncate(10 * time.Millisecond) // as the kernel tells it
	return b
}

// In a thousand measurements on a noisy machine nothing is found where nothing is, and each doubling is.
func TestNoiseIsNotTakenForADoubling(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	usual := limits{wall: 2 * 1.5, cpu: 3 * 1.5}
	for range 1000 {
		var subject, twice, slow, reference []block
		for range rounds {
			reference = append(reference, noisy(r, 2*time.Millisecond, 5*time.Millisecond, 20))
			subject = append(subject, noisy(r, 4*time.Millisecond, 15*time.Millisecond, 20))
			twice = append(twice, doubled(noisy(r, 4*time.Millisecond, 15*time.Millisecond, 40)))
			slow = append(slow, noisy(r, 8*time.Millisecond, 15*time.Millisecond, 20))
		}
		if why := compare(subject, reference).beyond(usual); why != "" {
			t.Errorf("noise was taken for a doubling: %s", why)
		}
		if compare(twice, reference).beyond(limits{cpu: usual.cpu}) == "" {
			t.Errorf("twice the CPU time was not found: %+v", compare(twice, reference))
		}
		if compare(slow, reference).beyond(limits{wall: usual.wall}) == "" {
			t.Errorf("twice the time was not found: %+v", compare(slow, reference))
		}
	}
}

func TestDoubled(t *testing.T) {
	d := doubled(block{walls: []time.Duration{1, 2, 3, 4, 5}, cpu: 10, allocations: 20})
	if len(d.walls) != 2 || d.walls[0] != 3 || d.walls[1] != 7 || d.cpu != 10 || d.allocations != 20 {
		t.Errorf("%+v", d)
	}
}

func TestLimitsThatAreExceededAreNamed(t *testing.T) {
	f := found{wall: 3, cpu: 1, allocations: 100}
	if got := f.beyond(limits{wall: 2.5, cpu: 1.5}); got != "time 3.00, at most 2.50" {
		t.Errorf("%q", got)
	}
	if got := f.beyond(limits{cpu: 1.5}); got != "" {
		t.Errorf("%q", got)
	}
	f.others = 0.9
	if got := f.beyond(limits{wall: 2.5, allocations: 50}); got != "allocations 100.00, at most 50.00" {
		t.Errorf("on a crowded machine: %q", got)
	}
}
