package sched

import "rockpool/internal/orchestrator/model"

// Usage is what allocations hold.
type Usage = model.Usage

// held counts the instances held of the devices that a name (type, vendor/type or vendor/type/name) means.
func held(u *Usage, name string) int {
	n := 0
	for k := range u.Kinds() {
		if meansDevice(name, k) {
			n++
		}
	}
	return n
}
