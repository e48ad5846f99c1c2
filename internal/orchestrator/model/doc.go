// Package model is the orchestrator's domain: jobs, evaluations, allocations, nodes and plans as the state store keeps
// them, the scheduler reads them and the log carries them.
//
// Values of this package are immutable once they are in the store: whoever changes one changes a copy. The package knows
// no store, no wire and no clock. Times are unix nanoseconds, sizes carry their unit in the name.
package model
