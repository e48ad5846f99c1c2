// Package report turns measurements into a table for people, which says of each figure whether its budget was held, and into lines of Go's benchmark format, by
// which runs are compared. It measures nothing itself.
package report
