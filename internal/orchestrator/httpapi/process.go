package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
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

// elsewhere hands a request about another server's process to that server, once, and reports whether it did. What is about a node's own agent is refused: its
// operator asks it directly.
func (a *API) elsewhere(w http.ResponseWriter, r *http.Request, t which) (bool, error) {
	leads, leader := a.cfg.Log.Leader()
	switch {
	case t.NodeID != "" && t.ServerID != "":
		return false, fault.New(fault.Invalid, "name either a node or a server")
	case t.NodeID != "":
		if a.nodes.Local() == t.NodeID {
			return false, nil
		}
		return false, fault.New(fault.Unsupported, "ask the agent of node %s itself: servers do not hand this on to nodes", t.NodeID)
	case t.ServerID == "", t.ServerID == a.cfg.Name, t.ServerID == a.cfg.Name+"."+a.cfg.Region, t.ServerID == "leader" && leads:
		return false, nil
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
		return true, p.pass(w, r, m.RPCAddress(), a.cfg.Cluster.Transport())
	}
	return false, fault.New(fault.NotFound, "no server is called %s", t.ServerID)
}

type monitorRequest struct {
	which
	Level    string `query:"log_level"`
	JSON     bool   `query:"log_json"`
	Plain    bool   `query:"plain"`
	Location bool   `query:"log_include_location"`
}

const monitorIdle = time.Second // between signs of life

// monitor streams the process's log: lines as they are, or in frames.
func (a *API) monitor(w http.ResponseWriter, r *http.Request, _ auth.Identity, req monitorRequest) error {
	if done, err := a.elsewhere(w, r, req.which); done || err != nil {
		return err
	}
	feed := a.proc().Log
	if feed == nil {
		return fault.New(fault.Unsupported, "the log of this process cannot be followed")
	}
	if req.Level == "" {
		req.Level = "info"
	}
	f, err := feed.Follow(req.Level, req.JSON)
	switch {
	case err == logging.ErrFollowers: //nolint:errorlint // it is never wrapped
		return fault.New(fault.Exhausted, "%s", err.Error())
	case err != nil:
		return fault.New(fault.Invalid, "Unknown log level: %s", req.Level)
	}
	defer f.Close()
	ctx, done, err := a.conns.begin(r.Context(), a.closing)
	if err != nil {
		return err
	}
	defer done()
	w.Header().Set("Content-Type", "application/json")
	if req.Plain {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	return pump(ctx, w, f, req.Plain)
}
