// Package gateway is the gateway's composition root: constructors and Run, no logic.
//
// The listener is open before anything else is up; until the cluster's runners and environments are known, health says so and other
// requests wait. Services stop in reverse order: listener and sessions, runners, connections to the cluster, the embedded
// orchestrator.
package gateway
