package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

func (a *API) agentSelf(context.Context, auth.Identity, endpoint.None) (reply, error) {
	stats := map[string]map[string]string{
		"nomad": {"server": "true", "leader": strconv.FormatBool(a.cfg.Leader.Leading())},
		"raft":  a.cfg.Log.Stats(),
	}
	if id := a.nodes.Local(); id != "" {
		stats["client"] = map[string]string{"node_id": id}
	}
	return a.written(a.store.Index(), map[string]any{
		"config": map[string]any{
			"Region": a.cfg.Region, "Datacenter": a.cfg.Datacenter, "NodeName": a.cfg.Name,
			"Version":  map[string]any{"Version": a.cfg.Version, "VersionPrerelease": "", "VersionMetadata": "", "Revision": ""},
			"ACL":      map[string]any{"Enabled": a.controlled()},
			"Server":   map[string]any{"Enabled": true},
			"Client":   map[string]any{"Enabled": a.nodes.Local() != ""},
			"UI":       map[string]any{"Enabled": false},
			"Rockpool": a.offers(),
			"Agent":    a.proc().config(), // the configuration by its own keys
		},
		"member": a.member(),
		"stats":  stats,
	}), nil
}

type agentHealth struct {
	Type string `query:"type"`
}

type healthReply struct {
	reply
	ok bool
}

// HTTPStatus is 500 when something is not well.
func (r healthReply) HTTPStatus() int {
	if r.ok {
		return http.StatusOK
	}
	return http.StatusInternalServerError
}

func (a *API) agentHealth(_ context.Context, _ auth.Identity, r agentHealth) (healthReply, error) {
	out, ok := &wire.AgentHealthResponse{}, true
	if r.Type == "" || r.Type == "server" {
		_, leader := a.cfg.Log.Leader()
		out.Server = &wire.AgentHealth{Ok: leader != "", Message: "ok"}
		if leader == "" {
			out.Server.Message = "No cluster leader"
		}
		ok = out.Server.Ok
	}
	if id := a.nodes.Local(); id != "" && (r.Type == "" || r.Type == "client") {
		node := a.store.Snapshot().Node(nil, id)
		up := node != nil && node.Status == model.NodeReady
		out.Client = &wire.AgentHealth{Ok: up, Message: "ok"}
		if !up {
			out.Client.Message = "the node is not registered as ready"
		}
		ok = ok && up
	}
	return healthReply{a.written(a.store.Index(), out), ok}, nil
}

func (a *API) getSchedulerConfig(context.Context, auth.Identity, endpoint.None) (reply, error) {
	snap := a.store.Snapshot()
	return a.written(snap.Index(), struct {
		SchedulerConfig *wire.SchedulerConfiguration
		Index           uint64
		KnownLeader     bool
	}{wire.ConfigOut(snap.SchedulerConfig()), snap.Index(), true}), nil
}

type setSchedulerConfig struct {
	CAS  string                      `query:"cas"`
	Body wire.SchedulerConfiguration `body:"json"`
}

func (a *API) setSchedulerConfig(ctx context.Context, _ auth.Identity, r setSchedulerConfig) (reply, error) {
	conf, wrong := wire.ConfigIn(&r.Body)
	if wrong != "" {
		return reply{}, answer(http.StatusBadRequest, "%s", wrong)
	}
	e := &command.SchedulerConfig{Now: time.Now().UnixNano(), Config: conf}
	if r.CAS != "" {
		at, err := strconv.ParseUint(r.CAS, 10, 64)
		if err != nil {
			return reply{}, answer(http.StatusBadRequest, "Error parsing cas value: %v", err)
		}
		e.CAS, e.AtIndex = true, at
	}
	done, index, err := a.apply(ctx, e)
	return a.written(index, struct {
		Updated any
		Index   uint64
	}{done, index}), err
}

func (a *API) collect(ctx context.Context, _ auth.Identity, _ endpoint.None) (reply, error) {
	if err := a.cfg.Leader.Collect(ctx); err != nil {
		return reply{}, err
	}
	return a.written(a.store.Index(), indexBody{a.store.Index()}), nil
}

type listVolumes struct {
	Type string `query:"type"`
}

func (a *API) noCSI(_ context.Context, _ auth.Identity, r listVolumes) (reply, error) {
	if r.Type != "csi" {
		return reply{}, unsupported()
	}
	return a.written(a.store.Index(), []struct{}{}), nil
}

// offers is what of docs/native-api.md a client may use here.
func (a *API) offers() map[string]bool {
	offers := map[string]bool{"NativeExec": true, "JobMark": true}
	if a.imageNode() != "" {
		offers["ImageResolve"] = true
	}
	return offers
}
