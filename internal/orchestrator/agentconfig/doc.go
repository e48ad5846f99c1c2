// Package agentconfig is the configuration of an orchestrator's agent: defaults, then files in HCL or YAML in their order, later ones winning.
//
// The struct [Config] is the one list of keys: names are its tags, and one walker fills it from both syntaxes. Keys are called as in Nomad where they
// mean the same. A key that does not exist is refused with its file, its line and the nearest key there is; a key of Nomad that is not
// offered is refused with the reason. All problems are reported together.
//
// The package reads what it is given and decides nothing: no network, no clock; files are read only through [Load].
package agentconfig
