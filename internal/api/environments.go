package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"rockpool/internal/api/dto"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/environment"
	"rockpool/internal/fault"
)

// takes is 204 while requests are taken, and 503 while recovery is under way or the gateway stops. It is for balancers: pools play no part, as a gateway with
// dry pools still serves whoever has a runner.
func (a *API) takes(context.Context, auth.Identity, endpoint.None) (endpoint.NoContent, error) {
	no := func(err error) (endpoint.NoContent, error) {
		return endpoint.NoContent{}, &answered{error: err, status: http.StatusServiceUnavailable, code: dto.CodeUnknown}
	}
	if a.isDraining() {
		return no(errDraining)
	}
	select {
	case <-a.ready:
		return endpoint.NoContent{}, nil
	default:
		return no(fault.New(fault.Unavailable, "recovery is under way: the cluster's runners and environments are being listed"))
	}
}

// health is 204, or 503 while requests are not taken or a pool runs dry.
func (a *API) health(ctx context.Context, caller auth.Identity, _ endpoint.None) (endpoint.NoContent, error) {
	depleting := func(text string) error {
		return &answered{error: fault.New(fault.Unavailable, "%s", text), status: http.StatusServiceUnavailable, code: dto.CodeDepleting}
	}
	if none, err := a.takes(ctx, caller, endpoint.None{}); err != nil {
		return none, err
	}
	var short []string
	list, _ := a.envs.List(context.Background(), false) // from memory: cannot fail
	stats := a.runners.AllStats()
	for _, e := range list {
		s, ok := stats[e.ID]
		if ok && s.Size > 0 && float64(s.Idle)/float64(s.Size) < a.opts.AlertThreshold {
			short = append(short, strconv.Itoa(int(e.ID)))
		}
	}
	if len(short) > 0 {
		return endpoint.NoContent{}, depleting("the prewarming pool is depleting: environments " + strings.Join(short, ", "))
	}
	return endpoint.NoContent{}, nil
}

func (a *API) version(context.Context, auth.Identity, endpoint.None) (string, error) {
	if a.opts.Version == "" {
		return "", empty(fault.New(fault.NotFound, "there is no release"))
	}
	return a.opts.Version, nil
}

func (a *API) statistics(_ context.Context, caller auth.Identity, _ endpoint.None) (map[string]dto.Statistics, error) {
	list, _ := a.envs.List(context.Background(), false) // from memory: cannot fail
	devices := map[environment.ID][]environment.Device{}
	for _, e := range list {
		devices[e.ID] = e.Devices
	}
	out := map[string]dto.Statistics{}
	for id, s := range a.runners.AllStats() {
		if !maySee(caller, id) {
			continue
		}
		one := dto.Statistics{
			ID: int(id), PrewarmingPoolSize: uint(s.Size), IdleRunners: uint(s.Idle), UsedRunners: uint(s.Used), Devices: devicesOut(devices[id]),
		}
		if s.Short {
			one.PossibleRunners = new(uint(s.Possible))
		}
		out[strconv.Itoa(int(id))] = one
	}
	return out, nil
}

// maySee reports whether an environment has a place in the lists of a caller.
func maySee(caller auth.Identity, id environment.ID) bool {
	return caller.MayIn(auth.GatewayRead, strconv.Itoa(int(id)))
}

type fetchRequest struct {
	Fetch bool `query:"fetch"`
}

func (a *API) listEnvironments(ctx context.Context, caller auth.Identity, r fetchRequest) (dto.Environments, error) {
	list, err := a.envs.List(ctx, r.Fetch)
	if err != nil {
		return dto.Environments{}, err
	}
	out := dto.Environments{ExecutionEnvironments: make([]dto.Environment, 0, len(list))}
	for _, e := range list {
		if !maySee(caller, e.ID) {
			continue
		}
		out.ExecutionEnvironments = append(out.ExecutionEnvironments, environmentOut(e))
	}
	return out, nil
}

func environmentOut(e environment.Environment) dto.Environment {
	ports := e.ExposedPorts
	if ports == nil {
		ports = []uint16{}
	}
	return dto.Environment{
		ID: int(e.ID), PrewarmingPoolSize: e.PoolSize, CPULimit: e.CPULimit, MemoryLimit: e.MemoryLimit,
		Image: e.Image, NetworkAccess: e.NetworkAccess, ExposedPorts: ports,
		NetworkEgress: e.Egress, Runtime: e.Runtime, Devices: devicesOut(e.Devices), PoolSizeMin: e.PoolSizeMin, PoolSizeMax: e.PoolSizeMax,
	}
}

type environmentRequest struct {
	ID    int  `path:"id"`
	Fetch bool `query:"fetch"`
}

func (a *API) getEnvironment(ctx context.Context, _ auth.Identity, r environmentRequest) (dto.Environment, error) {
	e, err := a.envs.Get(ctx, environment.ID(r.ID), r.Fetch)
	if fault.Is(err, fault.NotFound) {
		err = empty(err)
	}
	return environmentOut(e), err
}

type putRequest struct {
	ID   int                    `path:"id"`
	Body dto.EnvironmentRequest `body:"json"`
}

// put is 201 for a new environment and 204 for a replaced one.
type put struct{ created bool }

func (p put) HTTPStatus() int {
	if p.created {
		return http.StatusCreated
	}
	return http.StatusNoContent
}

// maxPoolSize bounds what one request can have the gateway keep track of; it is more than a cluster holds.
const maxPoolSize = 10_000

func (a *API) putEnvironment(ctx context.Context, _ auth.Identity, r putRequest) (put, error) {
	b := r.Body
	if b.PrewarmingPoolSize > maxPoolSize {
		return put{}, fault.New(fault.Invalid, "prewarmingPoolSize must be at most %d", maxPoolSize)
	}
	least, most := cmp.Or(b.PoolSizeMin, new(uint)), cmp.Or(b.PoolSizeMax, new(uint))
	if *most > maxPoolSize {
		return put{}, fault.New(fault.Invalid, "poolSizeMax must be at most %d", maxPoolSize)
	}
	if strings.Contains(b.Image, "..") || strings.Contains(b.Image, "://") {
		return put{}, fault.New(fault.Invalid, "image %q is not a reference of an image", b.Image)
	}
	created, err := a.envs.Put(ctx, environment.Environment{
		ID: environment.ID(r.ID), PoolSize: b.PrewarmingPoolSize, CPULimit: b.CPULimit, MemoryLimit: b.MemoryLimit,
		Image: b.Image, NetworkAccess: b.NetworkAccess, ExposedPorts: b.ExposedPorts,
		Egress: b.NetworkEgress, Runtime: b.Runtime, Devices: devicesIn(b.Devices), PoolSizeMin: *least, PoolSizeMax: *most,
	}, b.PoolSizeMin == nil && b.PoolSizeMax == nil)
	if kind := fault.KindOf(err); err != nil && kind != fault.Unavailable && kind != fault.Invalid { // only what is beyond the contract is invalid here
		err = coded(fmt.Errorf("provision environment %d: %w", r.ID, err), dto.CodeUnknown)
	}
	return put{created}, err
}

type deleteRequest struct {
	ID int `path:"id"`
}

func (a *API) deleteEnvironment(ctx context.Context, _ auth.Identity, r deleteRequest) (endpoint.NoContent, error) {
	err := a.envs.Delete(ctx, environment.ID(r.ID))
	if fault.Is(err, fault.NotFound) {
		err = empty(err)
	}
	return endpoint.NoContent{}, err
}
