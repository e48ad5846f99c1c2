// Package device gives a node its devices, such as GPUs: what there is, how it is, who holds it, and what it does.
//
// A Plugin knows the devices of one kind and tells of every change. The Manager runs all of them, merges what they say, and remembers which task holds which
// instance. Nothing of a plugin can keep the node from starting: what cannot be found out is said in one sentence and tried again.
package device
