package chaos_test

import (
	"errors"
	"flag"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/sim/chaos"
)

var (
	story   = flag.Bool("story", false, "tell what went wrong also where all was well")
	logFile = flag.String("simlog", "", "write the servers' logs there")
)

// run simulates, and checks everything.
func run(t *testing.T, cfg chaos.Config) (r *chaos.Result, err error) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { r, err = chaos.Run(cfg) })
	return r, errors.Join(err, r.Check())
}

// simulate runs a seed and fails with its whole story.
func simulate(t *testing.T, cfg chaos.Config) *chaos.Result {
	t.Helper()
	if *logFile != "" {
		f, err := os.Create(*logFile)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if cfg.Log, err = logging.New(f, "debug", logging.Text); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	r, err := run(t, cfg)
	if err != nil {
		t.Error(err)
	}
	t.Logf("seed %d: %d operations %v, %d updates, %d snapshots, term %d, in %v", cfg.Seed, r.Operations, r.Outcomes, r.Updates, r.Snapshots, r.Term, time.Since(began).Round(time.Millisecond))
	if *story {
		t.Log(r.Story)
	}
	return r
}

// TestWhatMustNotBeIsFound plants two faults that no cluster can live with.
func TestWhatMustNotBeIsFound(t *testing.T) {
	forgetting := chaos.Schedule{}
	for _, s := range []string{"s1", "s2", "s3"} {
		forgetting = append(forgetting, chaos.Fault{At: 1500 * time.Millisecond, For: 500 * time.Millisecond, Kind: chaos.Amnesia, Target: s})
	}
	for _, c := range []struct {
		name string
		cfg  chaos.Config
		want []string // one of them
	}{
		{"old values are read", chaos.Config{Stale: true, Schedule: chaos.Schedule{
			{At: time.Second / 2, For: 2 * time.Second, Kind: chaos.Cut, Target: "s1", Peer: "s3"}, {At: time.Second / 2, For: 2 * time.Second, Kind: chaos.Cut, Target: "s2", Peer: "s3"},
		}}, []string{"is not linearizable"}},
		{"what was acknowledged is forgotten", chaos.Config{Schedule: forgetting, Keep: 1 << 20}, []string{"is not linearizable", "did different things"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.cfg.Seed, c.cfg.Length, c.cfg.Nodes, c.cfg.Clients, c.cfg.Jobs = 1, 3*time.Second, 3, 4, 2
			_, err := run(t, c.cfg)
			if err == nil || !slices.ContainsFunc(c.want, func(w string) bool { return strings.Contains(err.Error(), w) }) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), "seed 1") || !strings.Contains(err.Error(), string(c.cfg.Schedule[0].Kind)) {
				t.Errorf("the error has no seed, or not what happened: %v", err)
			}
		})
	}
}

// TestDevices runs nodes of all kinds, with GPUs that fail, vanish and are divided while jobs come and go.
func TestDevices(t *testing.T) {
	end := time.Now().Add(time.Duration(number("MINUTES", 1000)) * time.Minute)
	first := number("FIRST", 1)
	for seed := first; seed < first+number("SEEDS", 2); seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			if time.Now().After(end) {
				t.Skip("the time is over")
			}
			cfg := chaos.Config{Seed: seed, Devices: true, Nodes: 6, Clients: 4, Jobs: 24, Length: 10 * time.Second, Every: 400 * time.Millisecond}
			if os.Getenv("SEEDS") != "" {
				cfg = chaos.Config{Seed: seed, Devices: true, Jobs: 48, Clients: 6, Length: 30 * time.Second, Every: 500 * time.Millisecond}
			}
			r := simulate(t, cfg)
			t.Logf("%d allocations had devices, %d times there was no room", r.Holders, r.Waited)
			if r.Holders < 10 || r.Waited == 0 {
				t.Error("that is too few to show anything")
			}
		})
	}
}

// TestFlaps changes leaders FLAPS times while clients write.
func TestFlaps(t *testing.T) {
	t.Parallel()
	plan := chaos.Flaps(1, int(number("FLAPS", 8)))
	last := plan[len(plan)-1]
	// Jobs that were given up stay: so many changes of leader leave more than a thousand allocations, of which a node takes 200.
	nodes := 3 + len(plan)/150
	r := simulate(t, chaos.Config{Seed: 1, Schedule: plan, Length: last.At + last.For + time.Second, Nodes: nodes, Clients: 2})
	if r.Term < len(plan)/2 {
		t.Errorf("only %d terms came of %d flaps", r.Term, len(plan))
	}
}

func number(name string, otherwise uint64) uint64 {
	if v, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return v
	}
	return otherwise
}

// TestSeeds runs a few seeds, or as many as SEEDS says, from FIRST on, until MINUTES have passed.
func TestSeeds(t *testing.T) {
	end := time.Now().Add(time.Duration(number("MINUTES", 1000)) * time.Minute)
	first := number("FIRST", 1)
	for seed := first; seed < first+number("SEEDS", 2); seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			if time.Now().After(end) {
				t.Skip("the time is over")
			}
			cfg := small
			if os.Getenv("SEEDS") != "" {
				cfg = seeded(seed)
			}
			cfg.Seed = seed
			simulate(t, cfg)
		})
	}
}

// small is what the race detector finishes in a few seconds.
var small = chaos.Config{Nodes: 6, Clients: 3, Jobs: 3, Length: 4 * time.Second, Every: 400 * time.Millisecond}

// seeded is what a seed runs: most have three servers, some five; some last long enough for servers to be taken out and in again.
func seeded(seed uint64) chaos.Config {
	cfg := chaos.Config{}
	if seed%4 == 0 {
		cfg.Servers = 5
	}
	if seed%3 == 0 {
		cfg.Length, cfg.Every, cfg.Clients = time.Minute, 3*time.Second, 3
	}
	return cfg
}
