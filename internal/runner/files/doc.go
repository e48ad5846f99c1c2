// Package files says what the gateway asks of a runner's files, and turns a request to write files into an archive.
//
// Everything is streamed with bounded memory. A listing that was cut off is an error, never a short listing; so is a download.
package files

import (
	"context"
	"errors"
	"io"
	"iter"

	"rockpool/internal/runner/execution"
)

// Entry is one entry of a listing.
type Entry struct {
	Name        string
	Type        string // one character as in ls
	LinkTarget  string
	Size        int64
	ModTime     int64  // unix seconds
	Permissions string // nine characters
	Owner       string
	Group       string
}

// ErrNodeDown says that the cluster has no connection to the runner's node.
var ErrNodeDown = errors.New("the runner's node is down")

// Store is access to the files of runners. Relative paths start at the working directory. A path that is missing or unreadable is
// fault.NotFound.
type Store interface {
	// Apply deletes, then unpacks the archive. What could not be written is fault.Unprocessable, and its text says which; the rest
	// is written.
	Apply(ctx context.Context, at execution.Place, deletes []string, archive io.Reader) error
	List(ctx context.Context, at execution.Place, path string, recursive, privileged bool) iter.Seq2[Entry, error]
	// Open reads a regular file; size is -1 when it is not known.
	Open(ctx context.Context, at execution.Place, path string, privileged bool) (r io.ReadCloser, size int64, err error)
}
