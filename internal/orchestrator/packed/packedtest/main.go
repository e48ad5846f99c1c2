// Package packedtest is for the tests of packages that handle what was unpacked.
package packedtest

import (
	"fmt"
	"os"
	"testing"

	"rockpool/internal/orchestrator/packed"
)

// Main is a package's tests, which also fail if they change a value that is shared: whoever does that changes other jobs too.
type Main struct{ *testing.M }

// Run runs the tests and returns their exit code.
func (m Main) Run() int {
	code := m.M.Run()
	if err := packed.CheckShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}
