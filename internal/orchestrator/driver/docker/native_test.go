//go:build linux && cgo

package docker_test

import (
	"os"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox"
)

func init() {
	filesOf = func(root *os.File, idBase uint32, workDir string) driver.Files {
		return sandboxed.Files(sandbox.FilesOf(root, idBase, sandbox.Root{WorkDir: workDir}))
	}
}
