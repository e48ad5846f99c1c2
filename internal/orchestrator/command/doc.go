// Package command is the table of log entries: for each a tag, a version, a codec and the function that applies it.
//
// An entry on the log is one byte tag, one byte version, and the MessagePack form of its struct. Tags are on disk: they are never
// renumbered or reused, and a golden test pins them with their bytes. An entry that this program does not know stops it:
// skipping one would make servers differ. Entries carry their own time in Now, unix nanoseconds.
package command
