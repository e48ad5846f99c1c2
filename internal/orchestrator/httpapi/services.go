package httpapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"iter"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

// serviceTable is service discovery: what allocations offer, and where.
func (a *API) serviceTable() endpoint.Table {
	return endpoint.Table{
		endpoint.Call("service.list", "GET", "/v1/services", read(auth.ReadJob), a.listServices),
		endpoint.Call("service.get", "GET", "/v1/service/{name}", read(auth.ReadJob), a.getService),
		endpoint.Call("service.delete", "DELETE", "/v1/service/{name}/{service}", write(auth.SubmitJob, smallBody), a.deleteService),
		endpoint.Call("allocation.services", "GET", "/v1/allocation/{id}/services", read(auth.ReadJob), a.listAllocServices),
		endpoint.Call("job.services", "GET", "/v1/job/{id}/services", read(auth.ReadJob), a.listJobServices),
		endpoint.Call("node.watch.services", "PUT", "/v1/internal/node/{id}/services", write(auth.NodeSelf, nodeBody), a.putServices),
	}
}

func (a *API) listServices(ctx context.Context, _ auth.Identity, r query) (reply, error) {
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		var list []*wire.ServiceRegistrationListStub
		for v := range s.Services(w, r.namespace()) { // by namespace and name
			if !r.sees(v.Namespace) || !strings.HasPrefix(v.ServiceName, r.Prefix) {
				continue
			}
			if n := len(list); n == 0 || list[n-1].Namespace != v.Namespace {
				list = append(list, &wire.ServiceRegistrationListStub{Namespace: v.Namespace})
			}
			in := list[len(list)-1]
			if n := len(in.Services); n == 0 || in.Services[n-1].ServiceName != v.ServiceName {
				in.Services = append(in.Services, &wire.ServiceRegistrationStub{ServiceName: v.ServiceName, Tags: []string{}})
			}
			one := in.Services[len(in.Services)-1]
			one.Tags = append(one.Tags, v.Tags...)
			slices.Sort(one.Tags)
			one.Tags = slices.Compact(one.Tags)
		}
		out, next, err := page(slices.Values(list), &r, func(v *wire.ServiceRegistrationListStub) string { return v.Namespace })
		return found{s.ServicesIndex(), out, next}, err
	})
}

type getService struct {
	query
	Name   string `path:"name"`
	Choose string `query:"choose"`
}

func (a *API) getService(ctx context.Context, _ auth.Identity, r getService) (reply, error) {
	count, key, err := parseChoose(r.Choose)
	if err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		out, next, err := page(registrations(s.ServicesByName(w, r.namespace(), r.Name)), &r.query, func(v *wire.ServiceRegistration) string { return v.ID })
		if r.Choose != "" {
			out, next = choose(out, count, key), ""
		}
		return found{s.ServicesIndex(), out, next}, err
	})
}

func registrations(in iter.Seq[*model.ServiceRegistration]) iter.Seq[*wire.ServiceRegistration] {
	return mapped(in, func(v *model.ServiceRegistration) (*wire.ServiceRegistration, bool) { return wire.ServiceOut(v), true })
}

// parseChoose reads how many registrations are wanted, and for whom, from "2|key".
func parseChoose(s string) (int, string, error) {
	if s == "" {
		return 0, "", nil
	}
	first, key, ok := strings.Cut(s, "|")
	n, err := strconv.Atoi(first)
	if !ok || err != nil || n < 1 || key == "" {
		return 0, "", fault.New(fault.Invalid, "choose must be a number of at least 1, a bar and a key, such as 2|key")
	}
	return n, key, nil
}

// choose picks registrations for a key by rendezvous hashing: the same ones each time, spread evenly over keys, and when a registration goes only those keys
// that had it get another one.
func choose(list []*wire.ServiceRegistration, n int, key string) []*wire.ServiceRegistration {
	weight := func(v *wire.ServiceRegistration) string {
		h := sha256.Sum256([]byte(key + "\x00" + v.AllocID + "\x00" + v.ID))
		return string(h[:])
	}
	slices.SortFunc(list, func(x, y *wire.ServiceRegistration) int { return cmp.Compare(weight(x), weight(y)) })
	return list[:min(n, len(list))]
}

type deleteService struct {
	Namespace string `query:"namespace"`
	Name      string `path:"name"`
	Service   string `path:"service"`
}

func (a *API) deleteService(ctx context.Context, _ auth.Identity, r deleteService) (reply, error) {
	return a.removed(ctx, &command.ServiceDelete{
		Now: time.Now().UnixNano(), Namespace: cmp.Or(r.Namespace, model.DefaultNamespace), Name: r.Name, ID: r.Service,
	}, "service registration not found")
}

func (a *API) listAllocServices(ctx context.Context, _ auth.Identity, r byID) (reply, error) {
	if err := uuid(r.ID); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		if s.Alloc(w, r.ID) == nil {
			return found{index: s.AllocsIndex()}, notFound("alloc")
		}
		out, next, err := page(registrations(s.ServicesByAlloc(w, r.ID)), &r.query, func(v *wire.ServiceRegistration) string { return v.ID })
		return found{s.ServicesIndex(), out, next}, err
	})
}

func (a *API) listJobServices(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.readJob(ctx, r, func(s *state.Snapshot, w state.Watch, j *model.Job) (found, error) {
		out, next, err := page(registrations(s.ServicesByJob(w, j.Namespace, j.ID)), &r.query, func(v *wire.ServiceRegistration) string { return v.ID })
		return found{s.ServicesIndex(), out, next}, err
	})
}

type putServices struct {
	ID   string                 `path:"id"`
	Body []*model.AllocServices `body:"json"`
}

const maxServices = 128 // of one allocation

// putServices takes all that some allocations of a node offer now.
func (a *API) putServices(ctx context.Context, who auth.Identity, r putServices) (reply, error) {
	snap := a.store.Snapshot()
	if who.NodeID != r.ID || snap.Node(nil, r.ID) == nil {
		return reply{}, notFound("node")
	}
	for _, s := range r.Body {
		if s == nil || len(s.Services) > maxServices {
			return reply{}, fault.New(fault.Invalid, "an allocation offers at most %d services", maxServices)
		}
		for _, v := range s.Services {
			if v == nil || v.ID == "" || len(v.ID) > 512 || v.ServiceName == "" || len(v.ServiceName) > 128 || !state.ValidKey(v.ID+v.ServiceName) ||
				v.Port < 0 || v.Port > 65535 || v.Address != "" && net.ParseIP(v.Address) == nil && strings.ContainsAny(v.Address, " /:") {
				return reply{}, fault.New(fault.Invalid, "a service needs an id, a name, an address and a port between 0 and 65535")
			}
		}
	}
	_, index, err := a.apply(ctx, &command.ServiceUpsert{Now: time.Now().UnixNano(), NodeID: r.ID, Allocs: r.Body})
	return a.written(index, indexBody{index}), err
}
