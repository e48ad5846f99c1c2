// Package inspect is what an operator sees of one process: its log as it is written, its machine, its profiles. A server answers with it for itself, and a node's
// agent over the connection that the servers reach it by.
package inspect

import "rockpool/internal/logging"

// Process is a process that may be looked at.
type Process struct {
	// Name is the agent's.
	Name string
	// Log is the process's log, for who follows it. nil = it cannot be followed.
	Log *logging.Feed
	// Profiles allows profiles to be taken.
	Profiles bool
}
