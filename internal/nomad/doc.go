// Package nomad is the gateway's adapter to a cluster that speaks Nomad's HTTP API, and the only importer of nomad/api on the gateway's side.
//
// It translates: environments and runners to jobs and back, the event stream to a level-triggered feed, executions and files to the
// cluster's own routes. Invariants:
//
//   - every call has a deadline, that of its context; streams end with theirs;
//   - an error has a kind: Unavailable when the cluster cannot be reached or has no leader, Conflict when a compare-and-set lost, NotFound,
//     Internal for the rest;
//   - the feed begins with everything, goes on with changes in the order of the cluster's index, and after any break begins anew. The stream is opened before the
//     listing is read, so nothing falls between them; what the listing already contains is told apart by index, never by a clock;
//   - a stream of events that goes back, says why it ends, or is silent for too long is left, and everything is listed anew;
//   - what a server offers is asked of it, once per connection of the feed: natively where docs/native-api.md is spoken, and otherwise by Nomad's exec with
//     constant scripts and every value quoted by package shell (architecture decisions 70 to 73);
//   - an exit code is the one that the server sent or that the output ended with, never a guess.
package nomad
