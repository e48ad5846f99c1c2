// Package config is the gateway's configuration: defaults, then a YAML file, then the environment, later ones winning.
//
// The struct [Config] is the one list of keys: YAML names are its tags, environment variables are derived from them, and one walker fills it. A key that does not
// exist or a value that does not fit is refused, and all problems are reported together. Keys that a Poseidon configuration may carry and that
// have no meaning here are accepted and named once in the log.
package config
