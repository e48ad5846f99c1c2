// Package nullio holds the ends that a program's standard streams are tied to when nobody is at the other side, or when the
// other side is slower than the program: a reader that has nothing to give, a stdin that waits for what is written to it, and
// a writer that takes everything.
//
// The readers block. They return no bytes and a nil error for a read of no bytes only, they never spin, and they start no
// goroutine: an idle reader costs its memory and nothing else. What ends a blocked read is Close, CloseWithError or, for
// [Null], the context given to [NewNull].
//
// All types are safe for concurrent use.
package nullio
