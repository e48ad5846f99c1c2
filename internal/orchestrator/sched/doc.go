// Package sched decides where work runs. It is pure: a state, a job and the time go in, a [Decision] comes out; nothing is
// written, nothing is waited for, and equal inputs give equal decisions, down to the ids of new allocations.
//
// Invariants: on no node is more promised than it has; each group reaches its count or the decision says why not; a
// group whose specification did not change is never touched.
package sched
