// Package consensus is the one home of hashicorp/raft: it brings log entries onto a durable, replicated log and applies them.
//
// Invariants:
//   - every call has a deadline, its context's or a bound of its own;
//   - leadership is a latest-value signal: [Raft.Leadership] is a channel of one that always holds the newest change not yet
//     read, and Raft never waits for its reader. A true that follows a true means lost and regained;
//   - an entry that cannot be understood stops the server with the reason: [Raft.Run] returns it;
//   - constructors start nothing, and Run returns when everything it started has ended.
package consensus
