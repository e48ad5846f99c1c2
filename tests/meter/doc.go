// Package meter reads from the kernel what processes use: CPU time of a process and everything below it, memory, descriptors, and what the rest of the machine does
// meanwhile. It needs Linux.
package meter
