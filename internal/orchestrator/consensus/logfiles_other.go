//go:build !linux

package consensus

import (
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
)

// newLogFiles are the files of the log, see logfiles_linux.go.
func newLogFiles() types.VFS { return walfs.New() }
