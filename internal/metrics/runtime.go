package metrics

import gort "runtime/metrics"

// runtimeNames are figures of Go's runtime under the names that Nomad gives them.
var runtimeNames = map[string]string{
	"/memory/classes/heap/objects:bytes": "nomad.runtime.alloc_bytes",
	"/gc/heap/objects:objects":           "nomad.runtime.heap_objects",
	"/memory/classes/total:bytes":        "nomad.runtime.sys_bytes",
	"/sched/goroutines:goroutines":       "nomad.runtime.num_goroutines",
	"/gc/cycles/total:gc-cycles":         "nomad.runtime.total_gc_runs",
}

// Runtime reads Go's own figures.
func Runtime(set func(name string, v float64)) {
	samples := make([]gort.Sample, 0, len(runtimeNames))
	for name := range runtimeNames {
		samples = append(samples, gort.Sample{Name: name})
	}
	gort.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() == gort.KindUint64 {
			set(runtimeNames[s.Name], float64(s.Value.Uint64()))
		}
	}
}
