// Package runner owns the life of runners: it keeps the pools filled, hands runners out, watches over their inactivity, and
// destroys them.
//
// Invariants:
//
//   - there is one [Runner] record per claimed id for as long as this process knows it; a listing compares records and never makes
//     a second one, so timers and executions survive a broken event stream;
//   - a claim is a compare-and-set in the cluster made before the answer; whoever loses takes the next runner;
//   - a runner that was used, whose claim had an unknown outcome, that restarted or that could not be cleaned up is destroyed, never
//     returned to a pool;
//   - the end of a runner has one cause, which every execution and copy bound to it sees.
//
// Several gateways may share a cluster ([Shared]): one keeps the pools and the others follow, a runner is watched over by the gateway that claimed it or,
// once that is dead, by the one that leads, and it expires only when no gateway saw it used.
//
// [Manager.Run] is the shell around package pool: it follows the feed, carries out what the pool plans, and has one timer. The
// manager's lock guards the pool and the records; no call is made while it is held.
package runner
