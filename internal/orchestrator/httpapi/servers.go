package httpapi

import (
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
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/membership"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

// Cluster is what the API needs of the servers' consensus and of the others.
type Cluster interface {
	Changed() <-chan struct{} // closed when the leader may be another one
	LeaderAddress() string
	LastContact() time.Duration
	CaughtUp() bool
	Verify(ctx context.Context) error
	Peers() ([]consensus.Peer, uint64, error)
	Remove(ctx context.Context, id string) error
	Transfer(ctx context.Context, id string) error
	Save(ctx context.Context) (*consensus.Archive, error)
	Restore(ctx context.Context, in io.Reader, maxState int64, check func(io.Reader) error) error

	// Address is this server's own RPC address, "" for a server alone.
	Address() string
	// Transport reaches servers by their RPC address. nil for a server alone.
	Transport() http.RoundTripper
	// Members is nil for a server alone.
	Members() *membership.Membership
	Health() (consensus.ClusterHealth, error)
}

const (
	snapshotBody = 64 << 30 // bytes of an archive, and of the state inside
	restoreBound = 15 * time.Minute
)

// serverTable is what is about the servers themselves.
func (a *API) serverTable() endpoint.Table {
	restore := write(auth.Management, snapshotBody)
	restore.Timeout = restoreBound
	health := read(auth.OpRead)
	health.Serve = endpoint.Leader
	t := endpoint.Table{
		endpoint.Call("agent.members", "GET", "/v1/agent/members", read(auth.AgentRead), a.agentMembers),
		endpoint.Call("agent.servers", "GET", "/v1/agent/servers", read(auth.AgentRead), a.agentServers),
		endpoint.Call("status.leader", "GET", "/v1/status/leader", read(auth.Public), a.statusLeader),
		endpoint.Call("status.peers", "GET", "/v1/status/peers", read(auth.Public), a.statusPeers),
		endpoint.Call("regions", "GET", "/v1/regions", read(auth.Public), a.regions),
		endpoint.Call("agent.keyring.list", "GET", "/v1/agent/keyring/list", anywhere(auth.AgentWrite), a.gossipKeys),
		endpoint.Call("raft.configuration", "GET", "/v1/operator/raft/configuration", read(auth.OpRead), a.raftConfiguration),
		endpoint.Call("raft.remove", "DELETE", "/v1/operator/raft/peer", write(auth.OpWrite, smallBody), a.removePeer),
		endpoint.Call("autopilot.get", "GET", "/v1/operator/autopilot/configuration", read(auth.OpRead), a.getAutopilot),
		endpoint.Call("autopilot.health", "GET", "/v1/operator/autopilot/health", health, a.autopilotHealth),
		endpoint.Stream("snapshot.save", "GET", "/v1/operator/snapshot", read(auth.Management), a.saveSnapshot),
	}
	onSelf := anywhere(auth.AgentWrite)
	onSelf.Body, onSelf.Timeout = smallBody, short
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("agent.join"+name, method, "/v1/agent/join", onSelf, a.agentJoin),
			endpoint.Call("agent.keyring.install"+name, method, "/v1/agent/keyring/install", onSelf, a.changeGossipKey(membership.InstallKey)),
			endpoint.Call("agent.keyring.use"+name, method, "/v1/agent/keyring/use", onSelf, a.changeGossipKey(membership.UseKey)),
			endpoint.Call("agent.keyring.remove"+name, method, "/v1/agent/keyring/remove", onSelf, a.changeGossipKey(membership.RemoveKey)),
			endpoint.Call("agent.force-leave"+name, method, "/v1/agent/force-leave", onSelf, a.forceLeave),
			endpoint.Call("raft.transfer"+name, method, "/v1/operator/raft/transfer-leadership", write(auth.OpWrite, smallBody), a.transferLeadership),
			endpoint.Call("autopilot.set"+name, method, "/v1/operator/autopilot/configuration", write(auth.OpWrite, smallBody), a.setAutopilot),
			endpoint.Stream("snapshot.restore"+name, method, "/v1/operator/snapshot", restore, a.restoreSnapshot),
			endpoint.Call("introduction.create"+name, method, "/v1/acl/identity/client-introduction-token", write(auth.NodeWrite, smallBody), a.createIntroduction),
		}
	})...)
}

func (a *API) membership() *membership.Membership {
	if a.cfg.Cluster == nil {
		return nil
	}
	return a.cfg.Cluster.Members()
}

// members are the servers; one alone is its own only member.
func (a *API) members() []membership.Member {
	if m := a.membership(); m != nil {
		return m.Members()
	}
	host, port, _ := net.SplitHostPort(a.cfg.Address)
	n, _ := strconv.ParseUint(port, 10, 16)
	return []membership.Member{{
		Name: a.cfg.Name + "." + a.cfg.Region, Addr: host, Port: uint16(n), Status: membership.Alive,
		Tags: map[string]string{
			"build": a.cfg.Version, "dc": a.cfg.Datacenter, "region": a.cfg.Region, "role": membership.Role, "port": port, "raft_vsn": "3", "vsn": "1",
			"bootstrap": "1", "id": a.cfg.Name, "rpc_addr": host,
		},
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}}
}

func memberOut(m membership.Member) *wire.AgentMember {
	return &wire.AgentMember{
		Name: m.Name, Addr: m.Addr, Port: m.Port, Status: m.Status, Tags: m.Tags,
		ProtocolMin: m.ProtocolMin, ProtocolMax: m.ProtocolMax, ProtocolCur: m.ProtocolCur,
		DelegateMin: m.DelegateMin, DelegateMax: m.DelegateMax, DelegateCur: m.DelegateCur,
	}
}

// member is this server.
func (a *API) member() *wire.AgentMember {
	for _, m := range a.members() {
		if m.Name == a.cfg.Name+"."+a.cfg.Region {
			return memberOut(m)
		}
	}
	return &wire.AgentMember{Name: a.cfg.Name + "." + a.cfg.Region}
}

func (a *API) agentMembers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	out := &wire.ServerMembers{ServerName: a.cfg.Name, ServerRegion: a.cfg.Region, ServerDC: a.cfg.Datacenter, Members: []*wire.AgentMember{}}
	for _, m := range a.members() {
		out.Members = append(out.Members, memberOut(m))
	}
	return a.written(a.store.Index(), out), nil
}

// agentServers are the servers that are alive, by the address that other servers reach them by.
func (a *API) agentServers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	out := []string{}
	for _, m := range a.members() {
		if m.Status == membership.Alive {
			out = append(out, m.RPCAddress())
		}
	}
	return a.written(a.store.Index(), out), nil
}

type agentJoin struct {
	Addresses []string `query:"address"`
}

func (a *API) agentJoin(_ context.Context, _ auth.Identity, r agentJoin) (reply, error) {
	type joined struct {
		NumJoined int    `json:"num_joined"`
		Error     string `json:"error"`
		Warning   string `json:"warning"`
	}
	if len(r.Addresses) == 0 {
		return reply{}, answer(http.StatusBadRequest, "missing address to join")
	}
	m := a.membership()
	if m == nil {
		return reply{}, alone()
	}
	n, err := m.Join(r.Addresses)
	out := joined{NumJoined: n}
	if err != nil {
		out.Error = err.Error()
	}
	return a.written(a.store.Index(), out), nil
}

func alone() error {
	return fault.New(fault.Unsupported, "this server is alone: give it an address for other servers to make it one of a cluster")
}

type forceLeave struct {
	Node  string        `query:"node"`
	Prune endpoint.Flag `query:"prune"`
}

func (a *API) forceLeave(_ context.Context, _ auth.Identity, r forceLeave) (reply, error) {
	if r.Node == "" {
		return reply{}, answer(http.StatusBadRequest, "missing node to force leave")
	}
	m := a.membership()
	if m == nil {
		return reply{}, alone()
	}
	if err := m.ForceLeave(r.Node, bool(r.Prune)); err != nil {
		return reply{}, err
	}
	return a.written(a.store.Index(), nil), nil
}

func (a *API) gossipKeys(context.Context, auth.Identity, endpoint.None) (reply, error) {
	m := a.membership()
	if m == nil {
		return reply{}, alone()
	}
	keys, err := m.Keys()
	if err != nil {
		return reply{}, err
	}
	return a.written(a.store.Index(), keys), nil
}

type gossipKey struct {
	Body struct{ Key string } `body:"json"`
}

func (a *API) changeGossipKey(c membership.KeyChange) func(context.Context, auth.Identity, gossipKey) (reply, error) {
	return func(_ context.Context, _ auth.Identity, r gossipKey) (reply, error) {
		m := a.membership()
		if m == nil {
			return reply{}, alone()
		}
		keys, err := m.ChangeKey(c, r.Body.Key)
		if err != nil {
			return reply{}, err
		}
		return a.written(a.store.Index(), keys), nil
	}
}

func (a *API) statusLeader(context.Context, auth.Identity, endpoint.None) (reply, error) {
	if _, id := a.cfg.Log.Leader(); id == "" {
		return reply{}, answer(http.StatusInternalServerError, "No cluster leader")
	}
	if a.membership() == nil {
		return a.written(a.store.Index(), a.cfg.Address), nil
	}
	return a.written(a.store.Index(), a.cfg.Cluster.LeaderAddress()), nil
}

func (a *API) statusPeers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	if a.membership() == nil {
		return a.written(a.store.Index(), []string{a.cfg.Address}), nil
	}
	peers, _, err := a.cfg.Cluster.Peers()
	if err != nil {
		return reply{}, err
	}
	out := []string{}
	for _, p := range peers {
		out = append(out, p.Address)
	}
	return a.written(a.store.Index(), out), nil
}

func (a *API) regions(context.Context, auth.Identity, endpoint.None) (reply, error) {
	return a.written(a.store.Index(), []string{a.cfg.Region}), nil
}

func (a *API) raftConfiguration(context.Context, auth.Identity, endpoint.None) (reply, error) {
	if a.cfg.Cluster == nil {
		return reply{}, unsupported()
	}
	peers, index, err := a.cfg.Cluster.Peers()
	if err != nil {
		return reply{}, err
	}
	_, leader := a.cfg.Log.Leader()
	out := wire.RaftConfiguration{Index: index, Servers: []*wire.RaftServer{}}
	members := a.members()
	for _, p := range peers {
		s := &wire.RaftServer{ID: p.ID, Node: "(unknown)", Address: p.Address, Leader: p.ID == leader, Voter: p.Voter, RaftProtocol: "3"}
		if a.membership() == nil {
			s.Address = a.cfg.Address
		}
		for _, m := range members {
			if m.ID() == p.ID || a.membership() == nil {
				s.Node = m.Name
			}
		}
		out.Servers = append(out.Servers, s)
	}
	return a.written(index, out), nil
}

type removePeer struct {
	ID      string `query:"id"`
	Address string `query:"address"`
}

func (a *API) removePeer(ctx context.Context, _ auth.Identity, r removePeer) (reply, error) {
	switch {
	case a.cfg.Cluster == nil:
		return reply{}, unsupported()
	case r.Address != "":
		return reply{}, answer(http.StatusBadRequest, "a peer cannot be removed by its address: use ?id with its id")
	case r.ID == "":
		return reply{}, answer(http.StatusBadRequest, "Must specify ?id with the server's ID")
	}
	peers, _, err := a.cfg.Cluster.Peers()
	if err != nil {
		return reply{}, err
	}
	if !slices.ContainsFunc(peers, func(p consensus.Peer) bool { return p.ID == r.ID }) {
		return reply{}, answer(http.StatusInternalServerError, "id %q was not found in the Raft configuration", r.ID)
	}
	if len(peers) == 1 {
		return reply{}, answer(http.StatusBadRequest, "the last server of a cluster cannot be removed")
	}
	if err := a.cfg.Cluster.Remove(ctx, r.ID); err != nil {
		return reply{}, err
	}
	return a.written(a.store.Index(), nil), nil
}

func (a *API) transferLeadership(ctx context.Context, _ auth.Identity, r removePeer) (reply, error) {
	if a.cfg.Cluster == nil {
		return reply{}, unsupported()
	}
	if (r.ID == "") == (r.Address == "") {
		return reply{}, answer(http.StatusBadRequest, "must specify exactly one of ?id and ?address")
	}
	peers, _, err := a.cfg.Cluster.Peers()
	if err != nil {
		return reply{}, err
	}
	i := slices.IndexFunc(peers, func(p consensus.Peer) bool {
		return p.ID == r.ID || r.Address != "" && p.Address == r.Address
	})
	if i < 0 {
		return reply{}, answer(http.StatusInternalServerError, "server %q was not found in the Raft configuration", r.ID+r.Address)
	}
	if !peers[i].Voter {
		return reply{}, answer(http.StatusInternalServerError, "server %q has no vote and cannot lead", r.ID+r.Address)
	}
	out := wire.LeadershipTransferResponse{}
	_, from := a.cfg.Log.Leader()
	server := func(id string) wire.RaftServer {
		for _, p := range peers {
			if p.ID == id {
				return wire.RaftServer{ID: p.ID, Address: p.Address, Voter: p.Voter, Leader: p.ID == peers[i].ID, RaftProtocol: "3"}
			}
		}
		return wire.RaftServer{}
	}
	out.From, out.To = server(from), server(peers[i].ID)
	if out.Noop = from == peers[i].ID; !out.Noop {
		if err := a.cfg.Cluster.Transfer(ctx, peers[i].ID); err != nil {
			return reply{}, err
		}
	}
	return a.written(a.store.Index(), out), nil
}

func (a *API) getAutopilot(context.Context, auth.Identity, endpoint.None) (reply, error) {
	snap := a.store.Snapshot()
	c := snap.Autopilot()
	return a.written(snap.Index(), autopilotOut(c)), nil
}

func autopilotOut(c *state.Autopilot) *wire.AutopilotConfiguration {
	return &wire.AutopilotConfiguration{
		CleanupDeadServers: c.CleanupDeadServers, LastContactThreshold: c.LastContactThreshold, MaxTrailingLogs: c.MaxTrailingLogs,
		MinQuorum: c.MinQuorum, ServerStabilizationTime: c.ServerStabilizationTime, CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
}

type setAutopilot struct {
	CAS  string                      `query:"cas"`
	Body wire.AutopilotConfiguration `body:"json"`
}

func (a *API) setAutopilot(ctx context.Context, _ auth.Identity, r setAutopilot) (reply, error) {
	b := r.Body
	switch {
	case b.EnableRedundancyZones, b.DisableUpgradeMigration, b.EnableCustomUpgrades:
		return reply{}, answer(http.StatusBadRequest, "redundancy zones and upgrade migration are not supported by Rockpool")
	case b.LastContactThreshold < 0, b.ServerStabilizationTime < 0:
		return reply{}, answer(http.StatusBadRequest, "LastContactThreshold and ServerStabilizationTime must not be negative")
	case b.MinQuorum > 99:
		return reply{}, answer(http.StatusBadRequest, "MinQuorum is %d: it must be at most 99", b.MinQuorum)
	}
	e := &command.AutopilotConfig{Now: time.Now().UnixNano(), Config: &state.Autopilot{
		CleanupDeadServers: b.CleanupDeadServers, LastContactThreshold: b.LastContactThreshold, MaxTrailingLogs: b.MaxTrailingLogs,
		MinQuorum: b.MinQuorum, ServerStabilizationTime: b.ServerStabilizationTime,
	}}
	if r.CAS != "" {
		at, err := strconv.ParseUint(r.CAS, 10, 64)
		if err != nil {
			return reply{}, answer(http.StatusBadRequest, "Error parsing cas value: %v", err)
		}
		e.CAS, e.AtIndex = true, at
	}
	done, index, err := a.apply(ctx, e)
	return a.written(index, done), err
}

// autopilotReply is 429 when a server is not well, as Nomad has it.
type autopilotReply struct {
	reply
	healthy bool
}

func (r autopilotReply) HTTPStatus() int {
	if r.healthy {
		return http.StatusOK
	}
	return http.StatusTooManyRequests
}

func (a *API) autopilotHealth(context.Context, auth.Identity, endpoint.None) (autopilotReply, error) {
	if a.cfg.Cluster == nil {
		return autopilotReply{}, unsupported()
	}
	h, err := a.cfg.Cluster.Health()
	if err != nil {
		return autopilotReply{}, err
	}
	out := &wire.OperatorHealthReply{Healthy: h.Healthy, FailureTolerance: h.FailureTolerance, Leader: h.Leader, Voters: []string{}, Servers: []wire.ServerHealth{}}
	for _, s := range h.Servers {
		if s.Voter {
			out.Voters = append(out.Voters, s.ID)
		}
		out.Servers = append(out.Servers, wire.ServerHealth{
			ID: s.ID, Name: s.Name, Address: s.Address, SerfStatus: s.Status, Version: s.Version, Leader: s.Leader, LastContact: s.Progress.LastContact,
			LastTerm: s.Progress.LastTerm, LastIndex: s.Progress.LastIndex, Healthy: s.Healthy, Voter: s.Voter, StableSince: s.StableSince,
		})
	}
	return autopilotReply{a.written(a.store.Index(), out), h.Healthy}, nil
}

// saveSnapshot sends the state as an archive whose digest stands in the header.
func (a *API) saveSnapshot(w http.ResponseWriter, r *http.Request, _ auth.Identity, _ endpoint.None) error {
	if a.cfg.Cluster == nil {
		return unsupported()
	}
	s, err := a.cfg.Cluster.Save(r.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	a.written(s.Index, nil).HTTPHeader(w.Header())
	w.Header().Set("Digest", s.Digest)
	w.Header().Set("Content-Type", "application/x-gzip")
	w.Header().Set("Content-Length", strconv.FormatInt(s.Size, 10))
	_, err = io.Copy(w, s)
	return err
}

// renewBound is how long a restore waits for the term that begins with it.
const renewBound = 10 * time.Second

type restoreSnapshot struct {
	Body io.Reader `body:"raw"`
}

func (a *API) restoreSnapshot(w http.ResponseWriter, r *http.Request, _ auth.Identity, req restoreSnapshot) error {
	if a.cfg.Cluster == nil {
		return unsupported()
	}
	check := func(in io.Reader) error { return state.New().Restore(in) }
	renewed := a.cfg.Leader.Renewal()
	if err := a.cfg.Cluster.Restore(r.Context(), req.Body, snapshotBody, check); err != nil {
		return err
	}
	// What is asked of the old term may be refused with it: who waited for this answer is to find the new one. The state is replaced also where that takes longer.
	bound, cancel := context.WithTimeout(r.Context(), renewBound)
	_ = renewed(bound)
	cancel()
	// An update that changes nothing lifts the index of the state, which is that of the archive, above all that readers and nodes have seen.
	_, index, err := a.apply(r.Context(), &command.EvalUpdate{Now: time.Now().UnixNano()})
	if err != nil {
		return fmt.Errorf("the snapshot was restored, its first update failed: %w", err)
	}
	a.written(index, nil).HTTPHeader(w.Header())
	return endpoint.WriteJSON(w, r, "application/json", http.StatusOK, indexBody{index})
}

// ServerURLs are the HTTP APIs of all servers that are alive, for nodes to know.
func ServerURLs(members []membership.Member) []string {
	var out []string
	for _, m := range members {
		if u := m.Tags["http"]; u != "" && m.Status == membership.Alive {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
