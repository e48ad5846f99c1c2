//go:build linux && cgo

package oci

import (
	"encoding/binary"
	"time"

	"rockpool/internal/sandbox"
)

// frame is what is said to the program inside: native integers, strings with their length and a NUL. inside_linux.c reads
// it in the same order.
type frame []byte

func (f *frame) u32(values ...uint32) {
	for _, v := range values {
		*f = binary.NativeEndian.AppendUint32(*f, v)
	}
}

func (f *frame) text(s string) {
	f.u32(uint32(len(s)))
	*f = append(append(*f, s...), 0)
}

func (f *frame) list(all []string) {
	f.u32(uint32(len(all)))
	for _, s := range all {
		f.text(s)
	}
}

// request says what to run, as whom, and in what.
func request(spec sandbox.ExecSpec, user sandbox.User, env []string, filter []byte) []byte {
	var flags uint32
	for _, f := range []struct {
		set  bool
		flag uint32
	}{{spec.TTY, flagTTY}, {spec.MergeStderr, flagMerge}, {spec.Background, flagBackground}} {
		if f.set {
			flags |= f.flag
		}
	}
	limit := uint64(max(0, spec.CPULimit/time.Microsecond))
	var f frame
	f.u32(user.UID, user.GID, uint32(len(user.Groups)))
	f.u32(user.Groups...)
	f.u32(flags, uint32(spec.Width), uint32(spec.Height), uint32(limit), uint32(limit>>32))
	f.text(spec.Dir)
	f.list(spec.Argv)
	f.list(env)
	f.text(string(filter))
	return append(binary.NativeEndian.AppendUint32(nil, uint32(len(f))), f...)
}

func command(kind, first, second uint32) []byte {
	var f frame
	f.u32(kind, first, second)
	return f
}

// report is what the program inside says.
type report struct {
	kind  uint32
	value int32
	step  uint32
	peak  int64 // bytes
	cpu   time.Duration
}

func parseReport(b []byte) report {
	n := binary.NativeEndian
	return report{n.Uint32(b), int32(n.Uint32(b[4:])), n.Uint32(b[8:]), int64(n.Uint32(b[12:])) << 10, time.Duration(n.Uint64(b[16:])) * time.Microsecond}
}
