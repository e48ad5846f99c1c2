//go:build linux && cgo

package sandbox

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// The frames between the node and the supervisor. Both ends are the same binary or two builds of one program, on one
// machine: integers are in native order. supervisor_linux.h has the other half.
const (
	frameMagic = 0x6b636f72

	kindPing     = 1
	kindExec     = 2
	kindHold     = 3
	kindProbe    = 4
	kindKeep     = 5
	kindResume   = 6
	kindStarting = 16
	kindExited   = 17
	kindPong     = 18
	kindNone     = 19

	keptStreams = 2 // stdout and stderr of a kept program

	flagTTY   = 1
	flagMerge = 2
	flagTimed = 4 // the answer says how long it took
	flagExtra = 8

	featureIDMap    = 1
	featureTime     = 2
	featureLandlock = 4

	headerSize  = 16
	eventSize   = 16
	verdictSize = 64
	trialSize   = 32

	maxRequest = 4 << 20
)

var native = binary.NativeEndian

// body builds the fields of a message; each string is preceded by its length and followed by a NUL.
type body []byte

func (b *body) u32(v uint32) { *b = native.AppendUint32(*b, v) }
func (b *body) u64(v uint64) { b.u32(uint32(v)); b.u32(uint32(v >> 32)) }
func (b *body) str(s string) { b.u32(uint32(len(s))); *b = append(append(*b, s...), 0) }
func (b *body) strs(list []string) {
	b.u32(uint32(len(list)))
	for _, s := range list {
		b.str(s)
	}
}

func header(kind uint32, length, fds int) []byte {
	var b body
	b.u32(frameMagic)
	b.u32(kind)
	b.u32(uint32(length))
	b.u32(uint32(fds))
	return b
}

// event is what the supervisor says on a connection.
type event struct {
	kind   uint32
	value  int32
	micros uint32 // from the request's arrival, where it was asked for; 0 = it was not
}

func parseEvent(b []byte) (event, error) {
	if len(b) != eventSize || native.Uint32(b) != frameMagic {
		return event{}, fmt.Errorf("%w: unreadable event of %d bytes", ErrLost, len(b))
	}
	return event{native.Uint32(b[4:]), int32(native.Uint32(b[8:])), native.Uint32(b[12:])}, nil
}

// parseVerdict gives the features of a set-up that succeeded, or the step that failed.
func parseVerdict(b []byte) (features uint32, err error) {
	if len(b) != verdictSize || native.Uint32(b) != frameMagic {
		return 0, fmt.Errorf("supervisor ended without an answer (%d bytes)", len(b))
	}
	step := b[12:]
	for i, c := range step {
		if c == 0 {
			step = step[:i]
			break
		}
	}
	if code := int32(native.Uint32(b[4:])); code != 0 {
		return 0, &StepError{Step: string(step), Errno: syscall.Errno(code)}
	}
	return native.Uint32(b[8:]), nil
}
