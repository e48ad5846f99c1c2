//go:build linux && cgo

package sandboxed

import (
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox/oci"
)

// OCI makes a Class of an OCI runtime of this machine.
func OCI(r *oci.Runtime) Class {
	return Class{Runtime: Bind(r, func(s *oci.Sandbox) driver.Files { return nativeFiles{s.Files()} }, translate), Version: r.Version(), OwnKernel: r.OwnKernel()}
}
