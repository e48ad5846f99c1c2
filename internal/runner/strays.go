package runner

import (
	"context"
	"maps"
	"slices"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/logging"
)

// strayTime is how long a runner of an environment that nobody knows is left alone: a definition may be on its way, here or to another program.
const strayTime = 2 * time.Minute

// sweep removes idle runners that were created too late: by a gateway that led before, for an environment that had been deleted by then. The cluster is asked whether
// it has no definition, and each runner is claimed before it goes, so that nobody's is taken. The lock is held.
func (m *Manager) sweep(ctx context.Context, now time.Time) {
	if m.sweeping || !m.leads() {
		return
	}
	strays := m.pools.Strays(strayTime, now)
	if len(strays) > 0 {
		m.sweeping = m.tasks.Go(func() { m.reap(ctx, strays) })
	}
}

func (m *Manager) reap(ctx context.Context, strays map[environment.ID][]string) {
	defer m.poke()
	for _, env := range slices.Sorted(maps.Keys(strays)) {
		callCtx, cancel := context.WithTimeout(ctx, callTime)
		orphans, err := m.cluster.Orphans(callCtx, env, strays[env])
		cancel()
		log := m.log.WithField("environment_id", int(env))
		if err != nil {
			log.WithField("error", err.Error()).Warn("whose idle runners of an unknown environment are could not be learned, it is tried again")
		}
		m.mu.Lock()
		for _, id := range orphans {
			if _, known := m.envs[env]; !known && m.leads() {
				log.WithFields(logging.Fields{"runner_id": id}).Info("an idle runner whose environment is gone is removed")
				m.pools.Reap(id, time.Now())
			}
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	m.sweeping = false
	m.mu.Unlock()
}
