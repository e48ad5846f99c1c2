// Package fabric is what simulated servers stand on instead of a machine: a network without sockets, and disks that live in memory.
//
// Both fail on demand. A link is cut in one direction at a time: what was sent over it stalls, and arrives late when the link heals, as TCP would have it.
// A host crashes: its listeners and connections are gone, and whatever still runs on it reaches nobody. A disk is slow, full, or loses what was not
// written when its server crashed.
//
// All waiting is for channels, conditions and timers, so that a whole cluster can live in a testing/synctest bubble, where a minute costs what it computes.
package fabric
