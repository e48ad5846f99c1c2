// Package httpapi is the orchestrator's HTTP interface: Nomad's API as docs/native-api.md extends it, in one route table.
//
// Handlers read a snapshot of the state or bring one entry onto the log; they keep nothing. What is not served answers 501.
// Errors are plain text with Nomad's words, because clients look for them.
package httpapi
