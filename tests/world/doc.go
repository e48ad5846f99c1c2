// Package world gives black-box suites a network of their own: they run in new namespaces, in which interfaces and machines are made as they like, and nothing that
// they send touches the network of the machine they run on. It needs Linux and root.
package world
