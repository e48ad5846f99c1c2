package sim_test

import (
	"math/rand/v2"
	"time"

	"rockpool/internal/orchestrator/model"
)

// lifetime lets everything run for d and end well.
func lifetime(d time.Duration) func(*rand.Rand, *model.Allocation) (time.Duration, bool) {
	return func(*rand.Rand, *model.Allocation) (time.Duration, bool) { return d, true }
}
