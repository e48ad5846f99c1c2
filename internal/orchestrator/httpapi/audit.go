package httpapi

import (
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
)

// Auditor notes what was asked of the API.
type Auditor interface {
	// Note must not block. Nothing secret is in the observation.
	Note(o endpoint.Observation)
}

// observer hands requests to the audit log. What only looks at the server's own health is not noted.
func (a *API) observer() func(endpoint.Observation) {
	if a.cfg.Audit == nil {
		return nil
	}
	public := map[string]bool{}
	for _, r := range a.table() {
		public[r.Name] = r.Policy.Scope == auth.Public && r.Method == "GET" && r.Name != "client.exec"
	}
	return func(o endpoint.Observation) {
		if !public[o.Route] {
			a.cfg.Audit.Note(o)
		}
	}
}
