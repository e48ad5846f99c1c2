// Package cluster runs the orchestrator's real binary as a cluster: three servers and two nodes, each a process in a network namespace of its own, joined by a
// bridge that the test makes. The servers of a majority are never well for long: the leader is killed, cut off, paused, and its disk fills up, while clients
// register, claim, execute and purge.
//
// The namespaces belong to the test's own process, which is in one itself. Nothing of the machine's network is touched, and everything ends with the test.
package cluster
