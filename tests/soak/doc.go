// Package soak runs a service under mixed honest and hostile load and looks, at moments without load, whether anything grows that should not: memory, goroutines,
// descriptors, mounts, control groups, processes, files, the log on disk. Honest clients check every answer; an error that they see is a failure.
package soak
