package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
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
			"Region": "global", "Datacenter": a.cfg.Datacenter, "NodeName": a.cfg.Name,
			"Version":  map[string]any{"Version": a.cfg.Version, "VersionPrerelease": "", "VersionMetadata": "", "Revision": ""},
			"ACL":      map[string]any{"Enabled": a.cfg.Token != ""},
			"Server":   map[string]any{"Enabled": true},
			"Client":   map[string]any{"Enabled": a.nodes.Local() != ""},
			"UI":       map[string]any{"Enabled": false},
			"Rockpool": a.offers(),
		},
		"member": a.member(),
		"stats":  stats,
	}), nil
}

func (a *API) member() *wire.AgentMember {
	host, port, _ := net.SplitHostPort(a.cfg.Address)
	n, _ := strconv.ParseUint(port, 10, 16)
	return &wire.AgentMember{
		Name: a.cfg.Name + ".global", Addr: host, Port: uint16(n), Status: "alive",
		Tags: map[string]string{
			"build": a.cfg.Version, "dc": a.cfg.Datacenter, "region": "global", "role": "rockpool", "port": port, "raft_vsn": "3", "vsn": "1",
			"bootstrap": "1", "id": a.cfg.Name, "rpc_addr": host,
		},
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
}

func (a *API) agentMembers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	return a.written(a.store.Index(), &wire.ServerMembers{
		ServerName: a.cfg.Name, ServerRegion: "global", ServerDC: a.cfg.Datacenter, Members: []*wire.AgentMember{a.member()},
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

func (a *API) statusLeader(context.Context, auth.Identity, endpoint.None) (reply, error) {
	if _, id := a.cfg.Log.Leader(); id == "" {
		return reply{}, answer(http.StatusInternalServerError, "No cluster leader")
	}
	return a.written(a.store.Index(), a.cfg.Address), nil
}

func (a *API) statusPeers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	return a.written(a.store.Index(), []string{a.cfg.Address}), nil
}

func (a *API) regions(context.Context, auth.Identity, endpoint.None) (reply, error) {
	return a.written(a.store.Index(), []string{"global"}), nil
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

type metrics struct {
	Format string `query:"format"`
}

// metrics writes the cluster's figures under Nomad's names.
func (a *API) metrics(w http.ResponseWriter, r *http.Request, _ auth.Identity, req metrics) error {
	figures := a.figures()
	if req.Format != "prometheus" {
		return unsupported()
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var b strings.Builder
	for _, f := range figures {
		fmt.Fprintf(&b, "# TYPE %s gauge\n%s %d\n", f.name, f.name, f.value)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

type figure struct {
	name  string
	value int
}

func (a *API) figures() []figure {
	snap := a.store.Snapshot()
	m := map[string]int{"nomad_state_snapshotIndex": int(snap.Index())}
	for _, s := range []string{model.JobPending, model.JobRunning, model.JobDead} {
		m["nomad_nomad_job_status_"+s] = 0
	}
	for j := range snap.Jobs(nil, "*", "") {
		m["nomad_nomad_job_status_"+cmp.Or(j.Status, model.JobPending)]++
	}
	for al := range snap.Allocs(nil, "") {
		m["rockpool_allocations_"+al.ClientStatus]++
	}
	for n := range snap.Nodes(nil, "") {
		m["rockpool_nodes_"+n.Status]++
	}
	for k, v := range a.cfg.Leader.Counts() {
		m["nomad_nomad_broker_total_"+k] = v
	}
	out := make([]figure, 0, len(m))
	for k, v := range m {
		out = append(out, figure{k, v})
	}
	slices.SortFunc(out, func(a, b figure) int { return strings.Compare(a.name, b.name) })
	return out
}

// offers is what of docs/native-api.md a client may use here.
func (a *API) offers() map[string]bool {
	offers := map[string]bool{"NativeExec": true}
	if a.imageNode() != "" {
		offers["ImageResolve"] = true
	}
	return offers
}
