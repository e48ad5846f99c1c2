//go:build linux && cgo

package sandbox

// #cgo CFLAGS: -std=gnu11 -O2 -Wall -Wextra -Werror=implicit-function-declaration
// #include "supervisor_linux.h"
import "C"

// supervisorName is argv[0] of the supervisor. The node's binary, started under this name, never reaches main.
const supervisorName = C.SUPERVISOR_NAME

// stepMappedOverlay fails on kernels whose overlay takes no id-mapped layers.
const stepMappedOverlay = C.STEP_MAPPED_OVERLAY
