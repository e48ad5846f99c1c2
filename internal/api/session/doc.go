// Package session is the WebSocket protocol of an execution; see DESIGN.md.
//
// Invariants: start is the first message and goes out before anything is started; exactly one of exit, timeout and error is the last, after all output,
// unless the client closed first; then comes Close 1000. Messages have no other keys than the contract's. At most [queueSize] messages
// wait for a slow client, then the program waits. A client that takes longer than the write deadline, or answers no ping, has left, unless it asked for an
// execution that waits for it: then its output is held, bounded, and none of it is ever left out silently.
package session
