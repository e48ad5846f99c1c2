//go:build linux && cgo

package sandbox

// #cgo CFLAGS: -std=gnu11 -O2 -fno-stack-protector -Wall -Wextra -Werror=implicit-function-declaration
// #include "supervisor_linux.h"
import "C"

import "unsafe"

// supervisorName is argv[0] of the supervisor.
const supervisorName = C.SUPERVISOR_NAME

// supervisorEntry is the address of the supervisor's first instruction in this process.
func supervisorEntry() uintptr { return uintptr(unsafe.Pointer(C.enter_supervisor)) }

// stepMappedOverlay fails on kernels whose overlay takes no id-mapped layers.
const stepMappedOverlay = C.STEP_MAPPED_OVERLAY
