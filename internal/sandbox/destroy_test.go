//go:build linux && cgo

package sandbox_test

import (
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

// Whatever a tenant leaves behind, its sandbox is gone in bounded time: nothing walks through what was written.
func TestDestroyTakesBoundedTime(t *testing.T) {
	const most = 3 * time.Second
	r := newRuntime(t)
	for name, program := range map[string]string{
		"as many files as there may be": `
import os
for d in ("/tmp", "/dev/shm"):
    try:
        for i in range(1 << 20): os.mknod(f"{d}/{i}")
    except OSError as e: print(e.errno)`,
		"names as long as they may be": `
import os
try:
    for i in range(1 << 20): os.mkdir("/tmp/" + str(i).rjust(255, "x"))
except OSError as e: print(e.errno)`,
		"a tree as deep as it may be": `
import os
os.chdir("/tmp")
try:
    while True:
        os.mkdir("d"); os.chdir("d")
except OSError as e: print(e.errno)`,
		"files without names, held open": `
import os, signal
for n in range(8):
    if os.fork() == 0:
        kept = []
        try:
            while True: kept.append(os.open("/tmp", os.O_TMPFILE | os.O_RDWR))
        except OSError: signal.pause()
print(24)
signal.pause()`,
		"everything at its largest": `
import os
for d in ("/tmp", "/dev/shm"):
    fd = os.open(d + "/big", os.O_CREAT | os.O_RDWR)
    try:
        while True: os.write(fd, b"x" * (1 << 20))
    except OSError as e: print(e.errno)`,
		"as many processes as there may be": `
import os, signal
try:
    while True:
        if os.fork() == 0:
            os.setsid()
            signal.pause()
except OSError as e: print(e.errno)
signal.pause()`,
	} {
		t.Run(name, func(t *testing.T) {
			s := create(t, r, func(spec *sandbox.Spec) {
				spec.Limits.MemoryBytes, spec.Limits.FileSizeBytes, spec.Limits.DiskInodes = 1<<30, 1<<40, 32768
			})
			e := begin(t, s, sandbox.ExecSpec{Argv: []string{"/usr/bin/python3", "-u", "-c", program}, User: "user", MergeStderr: true})
			// The first line says that there is no more room.
			buf := make([]byte, 256)
			if n, err := e.Stdout().Read(buf); err != nil || buf[0] < '0' || buf[0] > '9' {
				t.Fatalf("%q %v", buf[:n], err)
			}
			began := time.Now()
			if err := s.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > most {
				t.Errorf("it took %v", took)
			} else {
				t.Log(took)
			}
		})
	}
}

// Memory for shared use is bounded in bytes and in files, and charged.
func TestSharedMemoryIsBounded(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.DiskBytes = 16 << 20; spec.Limits.FileSizeBytes = 1 << 30 })
	if o := shell(t, s, "user", "head -c 32M /dev/zero > /dev/shm/big; r=$?; rm -f /dev/shm/big; exit $r"); o.ExitCode == 0 {
		t.Error("its bytes are not bounded")
	}
	if o := shell(t, s, "user", "for i in {1..5000}; do : > /dev/shm/$i || exit 1; done"); o.ExitCode == 0 {
		t.Error("its files are not bounded")
	}
	before, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if o := shell(t, s, "user", "rm -f /dev/shm/*; head -c 8M /dev/zero > /dev/shm/kept"); o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
	if after, err := s.Usage(); err != nil || after.MemoryBytes < 8<<20 {
		t.Errorf("%d bytes before, %d after, %v", before.MemoryBytes, after.MemoryBytes, err)
	}
}
