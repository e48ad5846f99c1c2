package api

import (
	"context"
	"math"
	"strconv"
	"time"

	"rockpool/internal/api/access"
	"rockpool/internal/api/dto"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/runner"
	"rockpool/internal/runner/pool"
)

func (a *API) listPools(ctx context.Context, caller auth.Identity, _ endpoint.None) (dto.Pools, error) {
	list, err := a.envs.List(ctx, false)
	if err != nil {
		return dto.Pools{}, err
	}
	out := dto.Pools{Pools: make([]dto.Pool, 0, len(list))}
	for _, e := range list {
		if r, ok := a.runners.Report(e.ID, false); ok && maySee(caller, e.ID) {
			out.Pools = append(out.Pools, poolOut(e, r))
		}
	}
	return out, nil
}

type poolRequest struct {
	ID int `path:"id"`
}

func (a *API) getPool(ctx context.Context, caller auth.Identity, q poolRequest) (dto.Pool, error) {
	id := environment.ID(q.ID)
	r, ok := a.runners.Report(id, true)
	if !ok {
		return dto.Pool{}, fault.Wrap(fault.NotFound, environment.ErrUnknown, "execution environment %d is unknown", id)
	}
	e, err := a.envs.Get(ctx, id, false)
	if err != nil {
		return dto.Pool{}, err
	}
	out := poolOut(e, r)
	out.Runners = make([]dto.PoolRunner, 0, len(r.Runners))
	for _, x := range r.Runners {
		if !a.tells(tokenOf(caller), id, x) {
			continue
		}
		out.Runners = append(out.Runners, dto.PoolRunner{
			ID: x.ID, State: states[x.Phase], Since: x.Since.UTC(), AgeSeconds: ago(x.Since), Current: x.Current, Failed: x.Failed, Reason: x.Reason,
		})
	}
	return out, nil
}

// tells reports whether a token sees a runner of a pool: its own, and those that nobody has had. Without the scope operate it learns of others' how many they are.
func (a *API) tells(t *access.Token, id environment.ID, x pool.Runner) bool {
	env := strconv.Itoa(int(id))
	switch {
	case t.May(auth.GatewayOperate, env), x.Phase <= pool.Idle:
		return true
	case x.Phase == pool.Used:
		r, err := a.runners.Lookup(x.ID)
		return err == nil && t.Owns(r.Owner, env)
	}
	return x.Failed // it never was anybody's
}

// states are the names of phases for people.
var states = map[pool.Phase]string{
	pool.Creating: "creating", pool.Starting: "starting", pool.Idle: "idle", pool.Claiming: "used", pool.Used: "used", pool.Dying: "removing",
}

func ago(t time.Time) float64 { return rounded(time.Since(t)) }

// rounded is seconds to the millisecond.
func rounded(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

func poolOut(e environment.Environment, r runner.Report) dto.Pool {
	out := dto.Pool{
		ID: int(e.ID), Devices: devicesOut(e.Devices), Wanted: r.Size, Configured: r.Spec.Size,
		Idle: r.Idle, Starting: r.Starting, Used: r.Used, Removing: r.Removing, Failed: r.Stats.Failed,
		Claims: dto.PoolClaims{Total: r.Hits.Claims, ServedAtOnce: r.Hits.Served, HitRate: math.Round(r.Hits.Share*10000) / 10000},
		Queue:  dto.PoolQueue{Waiting: r.Waiting, LongestSeconds: rounded(r.Longest), EstimateSeconds: rounded(r.Expected)},
		Limits: dto.PoolLimits{MaxRunners: r.Limits.Runners, Runners: r.Held, MaxUsed: r.Limits.Used},
	}
	if x := r.Automatic; x != nil {
		out.Automatic = &dto.PoolAutomatic{Min: r.Spec.Min, Max: r.Spec.Max, Needed: x.Need, StartSeconds: rounded(x.Lead)}
	}
	if f := r.Failures; f.Count > 0 {
		out.Failures = &dto.PoolFailures{InARow: f.Count, Last: f.Last.UTC(), Reason: f.Reason}
		if !f.Retry.IsZero() {
			out.Failures.RetryAt = new(f.Retry.UTC())
		}
	}
	if s := r.Shortage; s != nil {
		out.Shortage = &dto.PoolShortage{Possible: s.Possible, Since: s.Since.UTC(), Reason: s.Reason}
	}
	return out
}
