// Package sandboxed runs tasks in the native sandbox. The same code is registered under several names: sandbox, its own;
// docker, for jobs written for the Docker driver, as far as their configuration can be honoured to the letter; and exec, for
// plain commands on a view of the node's own system. A key that cannot be honoured is refused by name, never ignored,
// except for those that change nothing here (see the table in config.go).
//
// A sandbox lives by its supervisor, not by a process of the job. So a command that only waits, such as sleep infinity, is
// not started at all: the task lives as long as its sandbox, costs nothing while it waits, and survives the agent. Any
// other command runs inside as an execution; its end is the task's end. The native sandbox keeps it, its output and its end while there is
// no agent. In an OCI runtime it ends with its agent, and the task is then reported as lost.
package sandboxed
