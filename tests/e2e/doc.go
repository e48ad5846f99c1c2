// Package e2e holds the end-to-end tests: they start the real binaries as processes and look at them by URL, by terminal and by signal only.
// They need root, python3 and gcc, as the README says, and say so when they skip.
package e2e
