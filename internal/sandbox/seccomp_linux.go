//go:build linux && cgo

package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// The system call filter is an allow list. What is known and not allowed answers EPERM; what is newer than the list
// answers ENOSYS, which makes C libraries fall back; another architecture's calls kill (x32, int 0x80), because their
// numbers mean other things. The decision is a binary search, since the kernel runs the filter once per number when it is
// installed (seccomp_cache_prepare).
const (
	retAllow  = 0x7fff0000
	retErrno  = 0x00050000
	retKill   = 0x80000000
	retEPERM  = retErrno | uint32(unix.EPERM)
	retENOSYS = retErrno | uint32(unix.ENOSYS)
	retZero   = retErrno

	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16 // low half of argument 0 on a little-endian machine

	x32Bit = 0x40000000

	cloneNewAny = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

type instructions []unix.SockFilter

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}
func ret(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}
func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

// fixed is one answer whatever the arguments are.
func fixed(value uint32) instructions { return instructions{ret(value)} }

// onlyValues allows the call when the low half of an argument is one of the values. The kernel takes these arguments as
// 32 bits, so a comparison of all 64 could be passed by (CVE-2019-10063).
func onlyValues(argument uint32, values ...uint32) instructions {
	code := instructions{load(offsetArgs + 8*argument)}
	for i, v := range values {
		code = append(code, jump(unix.BPF_JEQ, v, uint8(len(values)-i), 0))
	}
	return append(code, ret(retEPERM), ret(retAllow))
}

func exceptValues(argument uint32, values ...uint32) instructions {
	code := instructions{load(offsetArgs + 8*argument)}
	for i, v := range values {
		code = append(code, jump(unix.BPF_JEQ, v, uint8(len(values)-i), 0))
	}
	return append(code, ret(retAllow), ret(retEPERM))
}

func special() map[uint32]instructions {
	socket := instructions{
		load(offsetArgs),
		jump(unix.BPF_JEQ, unix.AF_UNIX, 6, 0),
		jump(unix.BPF_JEQ, unix.AF_INET, 5, 0),
		jump(unix.BPF_JEQ, unix.AF_INET6, 4, 0),
		jump(unix.BPF_JEQ, unix.AF_NETLINK, 0, 2),
		load(offsetArgs + 16),
		jump(unix.BPF_JEQ, unix.NETLINK_ROUTE, 1, 0),
		ret(retErrno | uint32(unix.EAFNOSUPPORT)),
		ret(retAllow),
	}
	clone := instructions{
		load(offsetArgs),
		jump(unix.BPF_JSET, cloneNewAny, 0, 1),
		ret(retEPERM),
		ret(retAllow),
	}
	return map[uint32]instructions{
		unix.SYS_CLONE:       clone,
		unix.SYS_CLONE3:      fixed(retENOSYS), // its flags lie in memory, out of the filter's sight
		unix.SYS_SOCKET:      socket,
		unix.SYS_SOCKETPAIR:  socket,
		unix.SYS_IOCTL:       exceptValues(1, unix.TIOCSTI, unix.TIOCLINUX), // CVE-2017-5226, CVE-2023-28100
		unix.SYS_PERSONALITY: onlyValues(0, 0, 0xffffffff),
		// They would write back what every tenant and the node itself have dirty. There is nothing of a sandbox to save.
		unix.SYS_SYNC:   fixed(retZero),
		unix.SYS_SYNCFS: fixed(retZero),
	}
}

type segment struct {
	start uint32
	code  instructions
}

// search decides by halves among segments in order.
func search(segments []segment) instructions {
	if len(segments) == 1 {
		return segments[0].code
	}
	middle := len(segments) / 2
	left, right := search(segments[:middle]), search(segments[middle:])
	var code instructions
	if len(left) < 256 {
		code = instructions{jump(unix.BPF_JGE, segments[middle].start, uint8(len(left)), 0)}
	} else {
		code = instructions{
			jump(unix.BPF_JGE, segments[middle].start, 0, 1),
			{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(left))},
		}
	}
	return append(append(code, left...), right...)
}

// systemCallFilter builds the program for the architecture of this binary.
func systemCallFilter() ([]byte, error) {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil, errors.New("no system call filter for this architecture: use amd64 or arm64")
	}
	allowed := make(map[uint32]bool)
	for _, n := range append(allowedEverywhere, allowedHere...) {
		allowed[uint32(n)] = true
	}
	rules := special()
	var segments []segment
	previous := uint32(1)
	for n := range uint32(lastKnown + 1) {
		if code, ok := rules[n]; ok {
			segments = append(segments, segment{n, code})
			previous = 1
			continue
		}
		value := retEPERM
		if allowed[n] {
			value = retAllow
		}
		if value != previous {
			segments = append(segments, segment{n, fixed(value)})
		}
		previous = value
	}
	segments = append(segments, segment{lastKnown + 1, fixed(retENOSYS)})

	program := instructions{load(offsetArch), jump(unix.BPF_JEQ, arch, 1, 0), ret(retKill), load(offsetNumber)}
	if runtime.GOARCH == "amd64" {
		program = append(program, jump(unix.BPF_JGE, x32Bit, 0, 1), ret(retKill))
	}
	program = append(program, search(segments)...)
	if len(program) > 4096 { // BPF_MAXINSNS
		return nil, errors.New("system call filter is too long for the kernel")
	}
	var bytes body
	for _, i := range program {
		bytes = native.AppendUint16(bytes, i.Code)
		bytes = append(bytes, i.Jt, i.Jf)
		bytes.u32(i.K)
	}
	return bytes, nil
}

func filterHash(filter []byte) string {
	sum := sha256.Sum256(filter)
	return hex.EncodeToString(sum[:8])
}
