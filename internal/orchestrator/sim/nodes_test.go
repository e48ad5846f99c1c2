package sim_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed/packedtest"
	"rockpool/internal/orchestrator/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(packedtest.Main{M: m}) }

// Simulated nodes do what servers ask: each allocation is received, runs and ends once, with the delays that the configuration gives.
func TestNodesRunWhatIsPlacedOnThem(t *testing.T) {
	const jobs, each = 5, 20
	w := begin(t, orchestrator.ServerConfig{}, sim.FleetConfig{
		Count: 30, Seed: 7,
		Start: func(r *rand.Rand, _ *model.Allocation) time.Duration {
			return time.Duration(r.Int64N(int64(5 * time.Millisecond)))
		},
		Lifetime: lifetime(10 * time.Millisecond),
	})
	for i := range jobs {
		if err := w.put(t.Context(), "/v1/jobs", batchJob(fmt.Sprint("job-", i), each)); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(20 * time.Second); w.fleet.Ended.Load() < jobs*each; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d ended", w.fleet.Ended.Load(), jobs*each)
		}
	}
	if received, running, ended := w.fleet.Received.Load(), w.fleet.Running.Load(), w.fleet.Ended.Load(); received != jobs*each || running != jobs*each || ended != jobs*each {
		t.Errorf("received %d, ran %d, ended %d", received, running, ended)
	}
}

// Equal seeds make equal nodes, and different ones different nodes.
func TestASeedMakesTheFleet(t *testing.T) {
	describe := func(seed uint64) (out []string) {
		_, err := sim.NewFleet(sim.FleetConfig{Count: 3, Seed: seed, Connect: noConnection, Describe: func(_ int, n *model.Node) { out = append(out, n.ID, n.SecretID) }})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a, b, c := fmt.Sprint(describe(1)), fmt.Sprint(describe(1)), fmt.Sprint(describe(2)); a != b || a == c {
		t.Errorf("fleets are %s, %s and %s", a, b, c)
	}
}
