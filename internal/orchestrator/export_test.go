package orchestrator

// CutOff ends the server's network without a word to anybody, while the rest of it goes on.
func (s *Server) CutOff() {
	s.cluster.network.Cut()
}
