// Package network gives allocations a network of their own: a namespace on a bridge of the node behind nftables rules that keep it away from the
// node, from its neighbours and from everything that is not public; or a namespace that CNI plugins fill. It works through netlink, and runs no program
// but those plugins. DESIGN.md says how, and what an operator has to know.
package network
