// Package sandbox isolates one runner on one Linux machine: namespaces, control groups v1 and v2, an overlay root
// file system, seccomp, and a small supervisor as process 1 inside that starts executions on request.
//
// The package knows neither jobs nor HTTP. A [Runtime] is the node's side: it creates a [Sandbox] from a [Spec], finds
// again the sandboxes that an earlier process of the node left running, and removes what has no owner. Inside a sandbox an
// [Execution] is one program started by the supervisor from plain data (argv, environment, directory, user), never from
// shell text. Every execution has a control group of its own below the runner's, so that it is killed whole and its
// CPU time, peak memory and out-of-memory kills are the kernel's own figures.
//
// All types may be used concurrently. Goroutines belong to the Runtime, whose Close waits for them and leaves sandboxes
// running. DESIGN.md tells how a sandbox is built, used and ended, and what it does not stop.
package sandbox
