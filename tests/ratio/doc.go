// Package ratio catches what became twice as expensive. What the service does is compared with plain programs and system calls that do the least that is needed
// for it, run between the service's own in the same minute on the same machine: never with a time of another day. See docs/adr/0089-regressions-by-ratio.md.
package ratio
