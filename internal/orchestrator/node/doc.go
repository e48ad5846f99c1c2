// Package node is the agent of a machine that runs allocations. It registers the machine with the servers, holds one
// stream of changes to them, runs what is placed here through drivers, and reports what became of it.
//
// # Invariants
//
//   - What the servers want arrives whole on one stream (model.AllocPush). Nothing is polled, and nothing ticks between a
//     push and a running task. A message older than the newest one seen changes nothing.
//   - A state change is reported at once. While a report is on its way further ones gather, latest state per allocation, and
//     leave together after it. A report that fails is tried again until it is through: nothing is lost.
//   - An allocation that the servers no longer have is stopped and destroyed here, whatever its state.
//   - A task id is never used twice, also across crashes: its incarnation is on disk before the driver is asked to start it.
//   - An allocation of which the servers know that it ran, and this machine does not, is reported as failed. It is
//     never started a second time as if it were fresh.
//   - A new specification for an allocation that runs here never restarts its tasks.
//   - An allocation that has ended has no goroutine and hardly any memory: what is asked of it is read from disk, as a restart would read it (ended.go). It stays in memory only
//     where the disk does not have all of it.
//
// # Concurrency
//
// Agent.Run owns all goroutines and returns when the last has ended. Each allocation that has not ended has a goroutine (allocRunner.run), each
// of its tasks another (taskRunner.run); they share nothing but the state that allocRunner.mu guards. Drivers, files and
// servers are never called with a lock held.
package node
