// Package oci runs sandboxes in an OCI runtime that the node has, such as gVisor's runsc, Kata, crun or runc: another wall
// around the same executions, files and limits as those of package sandbox. The runtime is spoken to by its command line, which
// is the interface that all of them share (github.com/opencontainers/runtime-spec, runtime.md and config.md). DESIGN.md says
// how.
package oci
