package ratio

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// block is a row of operations of one kind.
type block struct {
	walls       []time.Duration
	cpu         time.Duration // of all of them
	allocations float64       // of all of them, in the service; not known of references
}

// crowded is the share of the machine's cores in use by others above which times are not judged: an operation that needs several processes in turn waits for a core
// several times where its reference waits once. CPU time and allocations are judged all the same.
const crowded = 0.4

// limits are what no ratio may exceed: half as much again as is usual, so that a doubling does. 0 = not looked at.
type limits struct {
	wall float64 // time of the service's operation by that of the reference
	cpu  float64 // the same of CPU time
	// allocations of one operation in the service. They are no time: they are nearly the same on every machine, however busy.
	allocations float64
}

// found is what a measurement says.
type found struct {
	wall, cpu, allocations float64
	others                 float64 // share of the machine's cores in use by others meanwhile
}

// compare makes ratios of blocks that were taken alternately. Of times it takes the twentieth of the way up from the shortest, which is what there is when nothing is in
// the way; of CPU time, which other work changes less but always upwards, the median of the pairs of blocks.
func compare(subject, reference []block) found {
	var f found
	f.wall = float64(low(subject)) / float64(low(reference))
	var cpu, allocations []float64
	for i, s := range subject {
		r := reference[i]
		if r.cpu > 0 {
			cpu = append(cpu, s.cpu.Seconds()/float64(len(s.walls))/(r.cpu.Seconds()/float64(len(r.walls))))
		}
		allocations = append(allocations, s.allocations/float64(len(s.walls)))
	}
	f.cpu, f.allocations = median(cpu), median(allocations)
	return f
}

func low(blocks []block) time.Duration {
	var all []time.Duration
	for _, b := range blocks {
		all = append(all, b.walls...)
	}
	slices.Sort(all)
	return all[len(all)/20]
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(list))
	return s[len(s)/2]
}

// beyond says which limits are exceeded; empty = none.
func (f found) beyond(l limits) string {
	var parts []string
	for _, c := range []struct {
		name       string
		got, limit float64
	}{{"time", f.wall, l.wall}, {"CPU time", f.cpu, l.cpu}, {"allocations", f.allocations, l.allocations}} {
		if c.limit > 0 && c.got > c.limit && (c.name != "time" || f.others < crowded) {
			parts = append(parts, fmt.Sprintf("%s %.2f, at most %.2f", c.name, c.got, c.limit))
		}
	}
	return strings.Join(parts, "; ")
}

// doubled is the same work with two operations counted as one.
func doubled(b block) block {
	d := block{cpu: b.cpu, allocations: b.allocations}
	for pair := range slices.Chunk(b.walls, 2) {
		if len(pair) == 2 {
			d.walls = append(d.walls, pair[0]+pair[1])
		}
	}
	return d
}
