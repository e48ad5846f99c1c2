package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/inspect"
)

// Process is the process around the server, as its operator sees it. Every part may be missing.
type Process struct {
	Metrics *metrics.Registry
	// NoPrometheus refuses the format of Prometheus.
	NoPrometheus bool
	// Log is the process's log, for who follows it.
	Log *logging.Feed
	// Config is the configuration by its keys, without secrets.
	Config func() map[string]any
	// Reload reads again what can change without a restart.
	Reload func() error
	// Profiles allows profiles of the process to be taken.
	Profiles bool
}

func (p *Process) config() map[string]any {
	if p.Config == nil {
		return map[string]any{}
	}
	return p.Config()
}

// SetProcess tells of the process around the server.
func (a *API) SetProcess(p Process) { a.around.Store(&p) }

// proc is what is known of the process; never nil.
func (a *API) proc() *Process {
	if p := a.around.Load(); p != nil {
		return p
	}
	return &Process{}
}

// processTable is what concerns one process, not the cluster.
func (a *API) processTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Stream("metrics", "GET", "/v1/metrics", read(auth.AgentRead), a.metrics),
		endpoint.Stream("agent.monitor", "GET", "/v1/agent/monitor", read(auth.AgentRead), a.monitor),
		endpoint.Stream("agent.pprof", "GET", "/v1/agent/pprof/{profile}", anywhere(auth.OpWrite), a.profile),
		endpoint.Stream("agent.host", "GET", "/v1/agent/host", anywhere(auth.OpRead), a.agentHost),
		endpoint.Call("agent.schedulers", "GET", "/v1/agent/schedulers", read(auth.AgentRead), a.schedulers),
		endpoint.Call("agent.schedulers.config", "GET", "/v1/agent/schedulers/config", read(auth.AgentRead), a.schedulerWorkers),
		endpoint.Call("license.get", "GET", "/v1/operator/license", anywhere(auth.OpRead), a.license),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("agent.reload"+name, method, "/v1/agent/reload", endpoint.Policy{Scope: auth.OpWrite, Body: smallBody, Timeout: short}, a.reload),
		}
	})...)
}

type metricsRequest struct {
	Format string        `query:"format"`
	Pretty endpoint.Flag `query:"pretty"`
}

// metrics writes the server's figures: a summary of the last whole interval, or for Prometheus.
func (a *API) metrics(w http.ResponseWriter, r *http.Request, _ auth.Identity, req metricsRequest) error {
	p := a.proc()
	switch {
	case p.Metrics == nil:
		return unsupported()
	case req.Format == "":
		return endpoint.WriteJSON(w, r, "application/json", http.StatusOK, p.Metrics.Summary())
	case req.Format != "prometheus":
		return fault.New(fault.Invalid, "format %q is not known: leave it out, or ask for prometheus", req.Format)
	case p.NoPrometheus:
		return fault.New(fault.Unsupported, "Prometheus is not enabled: set telemetry.prometheus_metrics")
	}
	p.Metrics.Prometheus().ServeHTTP(w, r)
	return nil
}

func (a *API) reload(context.Context, auth.Identity, endpoint.None) (reply, error) {
	p := a.proc()
	if p.Reload == nil {
		return reply{}, fault.New(fault.Unsupported, "this agent has no configuration file that it could read again")
	}
	if err := p.Reload(); err != nil {
		return reply{}, fault.Wrap(fault.Invalid, err, "the configuration was not read again: %v", err)
	}
	return a.written(a.store.Index(), indexBody{a.store.Index()}), nil
}

// license says in Nomad's way that there is nothing to license.
func (a *API) license(context.Context, auth.Identity, endpoint.None) (endpoint.NoContent, error) {
	return endpoint.NoContent{}, nil
}

// schedulerTypes are the kinds of jobs that every worker schedules.
var schedulerTypes = []string{"batch", "service", "sysbatch", "system"}

type workerInfo struct {
	ID                string   `json:"id"`
	EnabledSchedulers []string `json:"enabled_schedulers"`
	Started           string   `json:"started"`
	Status            string   `json:"status"`
	WorkloadStatus    string   `json:"workload_status"`
}

// schedulers lists the workers. They run on the leader only.
func (a *API) schedulers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	list := []workerInfo{}
	if a.cfg.Leader.Leading() {
		for i := range a.cfg.Leader.Workers() {
			list = append(list, workerInfo{ID: a.cfg.Name + "-" + strconv.Itoa(i), EnabledSchedulers: schedulerTypes, Status: "Started"})
		}
	}
	return a.written(a.store.Index(), struct {
		ServerID   string       `json:"server_id"`
		Schedulers []workerInfo `json:"schedulers"`
	}{a.cfg.Name, list}), nil
}

func (a *API) schedulerWorkers(context.Context, auth.Identity, endpoint.None) (reply, error) {
	return a.written(a.store.Index(), struct {
		ServerID          string   `json:"server_id"`
		NumSchedulers     int      `json:"num_schedulers"`
		EnabledSchedulers []string `json:"enabled_schedulers"`
	}{a.cfg.Name, a.cfg.Leader.Workers(), schedulerTypes}), nil
}

// which names the process that a request is about. Empty = the one that is asked.
type which struct {
	NodeID   string `query:"node_id"`
	ServerID string `query:"server_id"`
}

// elsewhere hands a request about another process to that one, and reports whether it did: to a server, once, which asks for the caller's right itself, or over a
// node's own connection for as long as the caller has the right s.
func (a *API) elsewhere(w http.ResponseWriter, r *http.Request, s auth.Scope, t which) (bool, error) {
	leads, leader := a.cfg.Log.Leader()
	switch {
	case t.NodeID != "" && t.ServerID != "":
		return false, fault.New(fault.Invalid, "name either a node or a server")
	case t.NodeID != "":
		if a.nodes.Local() == t.NodeID {
			return false, nil
		}
		return true, a.toNode(w, r, s, t.NodeID, false)
	case t.ServerID == "", t.ServerID == a.cfg.Name, t.ServerID == a.cfg.Name+"."+a.cfg.Region, t.ServerID == "leader" && leads:
		return false, nil
	case t.ServerID == "leader" && leader == "":
		return false, noLeader()
	}
	for _, m := range a.members() {
		name := strings.TrimSuffix(m.Name, "."+a.cfg.Region)
		if t.ServerID != m.Name && t.ServerID != name && t.ServerID != m.ID() && (t.ServerID != "leader" || m.ID() != leader) {
			continue
		}
		if forwarded(r) || a.cfg.Cluster == nil || a.cfg.Cluster.Transport() == nil {
			break
		}
		p, err := newPassing(r, 0)
		if err != nil {
			return false, err
		}
		err = p.pass(w, r, m.RPCAddress(), a.cfg.Cluster.Transport())
		if errors.Is(err, errNotServed) {
			err = fault.Wrap(fault.Unavailable, err, "server %s cannot be reached", t.ServerID)
		}
		return true, err
	}
	return false, fault.New(fault.NotFound, "no server is called %s", t.ServerID)
}

// looked is this process as it may be looked at.
func (a *API) looked() *inspect.Process {
	p := a.proc()
	return &inspect.Process{Name: a.cfg.Name, Log: p.Log, Profiles: p.Profiles}
}

// agentHost tells of the machine under a process.
func (a *API) agentHost(w http.ResponseWriter, r *http.Request, _ auth.Identity, t which) error {
	if done, err := a.elsewhere(w, r, auth.OpRead, t); done || err != nil {
		return err
	}
	return a.looked().Host(w, r)
}

type monitorRequest struct {
	which
	inspect.MonitorRequest
}

// monitor streams the log of a process for as long as the caller may read it.
func (a *API) monitor(w http.ResponseWriter, r *http.Request, id auth.Identity, req monitorRequest) error {
	if done, err := a.elsewhere(w, r, auth.AgentRead, req.which); done || err != nil {
		return err
	}
	ctx, done, err := a.conns.begin(r.Context(), a.closing)
	if err != nil {
		return err
	}
	defer done()
	ctx, end := a.whileAllowed(ctx, id.Expires, func() bool {
		who, err := a.authenticate(r)
		return err == nil && who.May(auth.AgentRead)
	})
	defer end()
	return a.looked().Monitor(ctx, w, req.MonitorRequest)
}

type profileRequest struct {
	which
	inspect.ProfileRequest
}

// profile takes a profile of a process.
func (a *API) profile(w http.ResponseWriter, r *http.Request, _ auth.Identity, req profileRequest) error {
	if done, err := a.elsewhere(w, r, auth.OpWrite, req.which); done || err != nil {
		return err
	}
	return a.looked().Profile(r.Context(), w, req.ProfileRequest)
}
