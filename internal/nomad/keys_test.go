package nomad_test

import (
	"testing"
	"time"

	"rockpool/internal/nomad"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/internal/runner"
)

// Keys go once nobody has changed them for their time, by one clock, and not before.
func TestKeysThatAreOverAreRemoved(t *testing.T) {
	cluster := nomadtest.New(t)
	k := nomad.NewKeys(client(t, cluster.URL))
	put := func(key string, index uint64) uint64 {
		t.Helper()
		got, ok, err := k.Agree(t.Context(), key, runner.Agreed{Runner: "10-x", Request: "10/60", Gateway: "g", Index: index})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return got
	}
	first := put("a", 0)
	put("b", 0)
	if _, ok, err := k.Agree(t.Context(), "a", runner.Agreed{Runner: "10-y"}); ok || err != nil {
		t.Errorf("a key that stands for something was taken: %v %v", ok, err)
	}
	seen, now := nomad.Swept{}, time.Now()
	look := func(after time.Duration, want int) {
		t.Helper()
		if err := k.Sweep(t.Context(), seen, now.Add(after)); err != nil {
			t.Fatal(err)
		}
		if n := len(cluster.Variables()); n != want {
			t.Errorf("after %v there are %d keys, want %d", after, n, want)
		}
	}
	look(0, 2)
	look(nomad.KeptTime-time.Second, 2)
	put("a", first)
	look(nomad.KeptTime, 1)
	if a, err := k.Agreed(t.Context(), "a"); err != nil || a.Runner != "10-x" || a.Index == 0 {
		t.Errorf("got %+v, %v", a, err)
	}
	look(2*nomad.KeptTime-time.Second, 1)
	look(2*nomad.KeptTime, 0)
	look(2*nomad.KeptTime, 0)
	if len(seen) != 0 {
		t.Errorf("it still knows of %v", seen)
	}
	cluster.NoVariables()
	if _, err := k.Agreed(t.Context(), "a"); err == nil {
		t.Error("what may not be read reads as nothing")
	}
}
