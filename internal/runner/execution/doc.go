// Package execution runs one command in a runner and says how it ended.
//
// A [Request] is stored under a fresh id and consumed by the first that takes it. [Run] drives one: it hands the program's output on as it arrives, feeds its
// standard input, and ends with exactly one [Outcome]. Invariants:
//
//   - an exit code is only ever what the process returned; an outcome nobody knows is [Failed];
//   - the verdict on a time limit or a stop is given at once; the program then gets QUIT, a grace period that outlives the request, and is killed
//     whole. If that fails the runner is of unknown state and is discarded;
//   - after the verdict no more output is delivered, and the exec is still waited for, by [Tasks].
package execution
