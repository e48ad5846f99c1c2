// Package state is the orchestrator's MVCC store: what the log entries have made of the cluster so far.
//
// Invariants:
//   - it is deterministic: equal entries in equal order give equal contents and an equal [Store.Hash]. Time comes in with the
//     entry; there is no clock, no randomness, no goroutine and no map order in here;
//   - an object in the store is never changed: a write puts a changed copy;
//   - a job's status is never set by a caller, it is derived at the end of each update from its allocations and evaluations;
//   - an update is one transaction, and its list of changes is told to the observers once, after it is visible.
//
// Reads come from a [Snapshot], which costs nothing to take and never changes. Each read may take a [Watch], which then
// fires when the answer may have changed. Only the goroutine that applies the log writes.
package state
