package chaos_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/sim/chaos"
)

func TestSchedulesEndWhatTheyBegin(t *testing.T) {
	shape := chaos.Shape{
		Servers: []string{"s1", "s2", "s3"}, Nodes: []string{"n1", "n2"}, Clients: []string{"c1"}, Length: time.Minute, Every: time.Second,
	}
	seen := map[chaos.Kind]bool{}
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		s := chaos.Plan(seed, shape)
		if !slices.Equal(s, chaos.Plan(seed, shape)) {
			t.Fatal("the same seed gave another schedule")
		}
		if len(s) < 20 {
			t.Fatalf("only %d faults in a minute", len(s))
		}
		var last time.Duration
		for _, f := range s {
			seen[f.Kind] = true
			if f.At < last || f.For < 0 || f.At+f.For > shape.Length {
				t.Fatalf("%v is out of order or does not end", f)
			}
			if (f.Kind == chaos.Cut || f.Kind == chaos.SlowLink) != (f.Peer != "") || f.Peer == f.Target {
				t.Fatalf("%v has no link", f)
			}
			if f.Kind == chaos.AgentStart != slices.Contains(shape.Nodes, f.Target) && f.Kind != chaos.Cut && f.Kind != chaos.SlowLink {
				t.Fatalf("%v is for another kind of host", f)
			}
			last = f.At
		}
	})
	if len(seen) != 11 {
		t.Errorf("only these kinds were planned: %v", seen)
	}
}
