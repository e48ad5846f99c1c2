// Package membership is the one home of serf: it knows which servers there are, brings a new cluster to its first configuration, and keeps the configuration of a
// running one equal to the servers there are.
//
// Invariants:
//   - gossip says who is there; Raft alone says who decides. Nothing of the state depends on gossip;
//   - the first configuration is made once, by the server with the smallest id among exactly as many as are expected, with the promise of each of them, and only
//     if none has one already;
//   - a new server starts without a vote; package consensus gives it one once it is stable;
//   - constructors start nothing, and Run returns when everything it started has ended.
package membership
