package serve

import (
	"net/http"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/link"
)

// processTable is what a server asks a node's agent as a process. These are no rows of [Rows]: a server has the same routes for itself, and hands on what names
// this node.
func (h *Handler) processTable() endpoint.Table {
	return endpoint.Table{
		endpoint.Call("probe", "GET", link.ProbePath, endpoint.Policy{Scope: auth.Public}, h.probe),
		endpoint.Stream("agent.host", "GET", "/v1/agent/host", onNode(auth.OpRead, 0), h.host),
		endpoint.Stream("agent.monitor", "GET", "/v1/agent/monitor", onNode(auth.AgentRead, 0), h.monitor),
		endpoint.Stream("agent.pprof", "GET", "/v1/agent/pprof/{profile}", onNode(auth.OpWrite, 0), h.profile),
	}
}

func (h *Handler) host(w http.ResponseWriter, r *http.Request, _ auth.Identity, _ nodeParameter) error {
	return h.process.Host(w, r)
}

type monitorRequest struct {
	nodeParameter
	inspect.MonitorRequest
}

func (h *Handler) monitor(w http.ResponseWriter, r *http.Request, _ auth.Identity, req monitorRequest) error {
	return h.process.Monitor(r.Context(), w, req.MonitorRequest)
}

type profileRequest struct {
	nodeParameter
	inspect.ProfileRequest
}

func (h *Handler) profile(w http.ResponseWriter, r *http.Request, _ auth.Identity, req profileRequest) error {
	return h.process.Profile(r.Context(), w, req.ProfileRequest)
}
