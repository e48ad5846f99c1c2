// Package cli is the operator's side of the orchestrator: the commands of cmd/orchestrator that speak to an agent over the HTTP API, by
// github.com/hashicorp/nomad/api. Names, flags and environment variables are those of Nomad's own command line where they mean the same.
//
// A command is a row of [Table]: its path, its arguments, and a function that declares its flags and returns what runs. It writes to the streams of its
// [Env] and reports its outcome as an error; [Code] says which exit code that is. An exit code of 0 means that what was asked for has come
// about, not that it was asked for: "job run" waits until what it registered runs and is healthy.
package cli
