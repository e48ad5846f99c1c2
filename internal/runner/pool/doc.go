// Package pool is the pure core of the prewarming pools: a state machine over what is wanted and what is observed. It
// does no input or output, knows no clock and starts nothing; every method is a function of the state, the event and now.
//
// Invariants, held by a property test against a naive model:
//
//   - per environment, runners of the current settings that are being created, are starting or are idle never outnumber its size
//     after a plan, unless they were found in the cluster and their removal is under way;
//   - [Pools.Take] gives out a runner at most once, and a runner never returns to the idle ones;
//   - at most Limits.Concurrency calls are under way, and a failed one is repeated only after its back-off, under the same id;
//   - no runner is created beyond Limits.Runners and none handed out beyond Limits.Used;
//   - what is remembered is bounded by the runners there are, the sizes, and the runners that ended within the last two minutes.
//
// Not safe for concurrent use: the shell (package runner) holds a lock around it. DESIGN.md tells how the phases follow each other.
package pool
