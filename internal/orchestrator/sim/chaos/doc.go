// Package chaos runs a cluster through a schedule of faults and checks what must hold whatever happens.
//
// The servers are real ones: Raft, state, scheduler, HTTP API. What they stand on is simulated (package fabric), and so are the nodes. A run is
//
//   - a [Schedule], made from a seed: who crashes, is cut off, has a slow or full disk, a wrong clock, and when that ends;
//   - clients that write jobs by compare-and-set, read, purge and claim them through any server, and record what they saw;
//   - after the last fault, a time to come to rest; then [Check] looks at histories, servers and nodes.
//
// Runs belong into a testing/synctest bubble. A seed fixes the schedule and what clients ask for, not the order in which goroutines run within one moment: a
// seed that fails may pass the next time, which is why a failure prints everything that happened.
package chaos
