package orchestrator

import (
	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/state"
)

// CutOff ends the server's network without a word to anybody, while the rest of it goes on.
func (s *Server) CutOff() {
	s.cluster.network.Cut()
}

// IntroductionKey is the secret that introduction tokens are signed by.
func (s *Server) IntroductionKey() *state.IntroductionKey {
	return s.store.Snapshot().IntroductionKey()
}

// Routes are all that the server's API has.
func (s *Server) Routes() endpoint.Table { return s.api.Routes() }

// VersionOf is what a release is called among servers.
var VersionOf = version
