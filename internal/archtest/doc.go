// Package archtest holds the architecture by test: which package may import which, which third-party library lives where, that every package is
// documented, and that goroutines start only where somebody waits for them.
package archtest
