//go:build linux && cgo

package oci

// #cgo CFLAGS: -std=gnu11 -O2 -Wall -Wextra -fno-stack-protector
// #include "inside_linux.h"
import "C"

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"
)

// What inside_linux.c and the node agree on.
const (
	statusFD = C.STATUS_FD
	helperID = C.HELPER_ID

	reportStarted  = C.REPORT_STARTED
	reportFailed   = C.REPORT_FAILED
	reportExited   = C.REPORT_EXITED
	reportCPULimit = C.REPORT_CPU_LIMIT
	reportSize     = C.sizeof_struct_report

	commandSignal = C.COMMAND_SIGNAL
	commandResize = C.COMMAND_RESIZE
	commandKill   = C.COMMAND_KILL

	flagTTY        = C.FLAG_TTY
	flagMerge      = C.FLAG_MERGE
	flagBackground = C.FLAG_BACKGROUND

	stepDirectory = C.STEP_DIRECTORY
	stepExecute   = C.STEP_EXECUTE
)

// steps are the words for what the program could not do.
var steps = map[uint32]string{
	C.STEP_SETUP: "prepare the execution", C.STEP_USER: "become the user", C.STEP_DIRECTORY: "enter the working directory",
	C.STEP_FILTER: "install the system call filter", C.STEP_EXECUTE: "execute",
}

const page = 4096

// part is a section of this program in memory.
type part struct {
	start uintptr
	bytes []byte
	flags elf.ProgFlag
}

func section(at *C.char, length C.long, flags elf.ProgFlag) part {
	return part{uintptr(unsafe.Pointer(at)), C.GoBytes(unsafe.Pointer(at), C.int(length)), flags}
}

// insideProgram makes a static executable of the two sections of inside_linux.c. They refer to each other by distance, which
// is kept; nothing else is in them.
func insideProgram() ([]byte, error) {
	machine, ok := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil, errors.New("no program to run inside for this architecture: use amd64 or arm64")
	}
	var codeLength, dataLength C.long
	code := C.inside_code(&codeLength)
	data := C.inside_data(&dataLength)
	parts := []part{section(code, codeLength, elf.PF_R|elf.PF_X), section(data, dataLength, elf.PF_R)}
	// As addresses: at the same distance, above what the kernel lets nobody map.
	base := min(parts[0].start, parts[1].start)&^(page-1) - 0x400000
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phoff: 64,
		Phentsize: 56, Phnum: uint16(len(parts) + 1), Entry: uint64(uintptr(unsafe.Pointer(C.inside_entry())) - base)}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var file, body bytes.Buffer
	if err := binary.Write(&file, binary.LittleEndian, header); err != nil {
		return nil, fmt.Errorf("make the program inside: %w", err)
	}
	// Parts on one page would have to share its rights: they are far apart in this program, which is checked.
	if apart(parts[0], parts[1]) == 0 {
		return nil, errors.New("make the program inside: its parts share a page")
	}
	for _, p := range parts {
		offset := uint64(page+body.Len()+page-1) &^ (page - 1)
		offset += uint64(p.start % page) // the loader maps whole pages
		body.Write(make([]byte, int(offset)-page-body.Len()))
		body.Write(p.bytes)
		prog := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(p.flags), Off: offset, Vaddr: uint64(p.start - base), Paddr: uint64(p.start - base),
			Filesz: uint64(len(p.bytes)), Memsz: uint64(len(p.bytes)), Align: page}
		if err := binary.Write(&file, binary.LittleEndian, prog); err != nil {
			return nil, fmt.Errorf("make the program inside: %w", err)
		}
	}
	// Without it the kernel would make all that can be read executable.
	if err := binary.Write(&file, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16}); err != nil {
		return nil, fmt.Errorf("make the program inside: %w", err)
	}
	file.Write(make([]byte, page-file.Len()))
	file.Write(body.Bytes())
	return file.Bytes(), nil
}

// apart is how many pages lie between the pages of two parts, plus one; 0 when they share one.
func apart(a, b part) uintptr {
	if a.start > b.start {
		a, b = b, a
	}
	return b.start/page - (a.start+uintptr(len(a.bytes))-1)/page
}
