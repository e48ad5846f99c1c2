// Package client runs a program in a runner from a terminal: it claims a runner, uploads files, executes, attaches the caller's
// terminal, and destroys the runner at the end, however that came.
//
// A terminal is put into raw mode, so that keys such as Ctrl-C reach the program as bytes; without one, SIGINT is passed on as a signal and the end of the input as
// its end.
package client

// Exit codes besides the program's own.
const (
	ExitTimeout     = 124
	ExitError       = 125 // of the client, the gateway or the cluster
	ExitOutOfMemory = 137
)
