// Package peers is what makes several gateways on one cluster one service: who else lives, which one of them keeps the pools, and what they ask of
// each other.
//
// Invariants:
//
//   - a gateway lives for the others while it holds the lease of its name, and leads while it holds the lease of that one name; both end by
//     themselves, for the holder always earlier than for everybody else;
//   - what a gateway does not know of another is never good news: a peer that lives and does not answer keeps runners alive;
//   - connections go to the addresses of gateways that live and have proved with the key that they wrote them, and to no others;
//   - a client's token is not passed on: one gateway gives another its word for whom it has authenticated.
//
// [Group.Run] is the only goroutine. docs/adr/0065, 0066 and 0096 say why it is made so.
package peers
