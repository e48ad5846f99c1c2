//go:build linux && cgo

package sandbox

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Before a child executes anything its files are put in order, by way of numbers above all of theirs. The supervisor is found whichever number the sealed
// binary has here.
func TestTheSupervisorStartsWhateverItsFilesAreNumbered(t *testing.T) {
	binary, err := sealedSelf()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = binary.Close() }()
	const number = 500
	high, err := unix.FcntlInt(binary.Fd(), unix.F_DUPFD_CLOEXEC, number)
	if err != nil {
		t.Fatal(err)
	}
	sealed := os.NewFile(uintptr(high), "sealed")
	defer func() { _ = sealed.Close() }()
	path, err := pathFromChildren(sealed)
	if err != nil {
		t.Fatal(err)
	}
	// The control socket comes first, and is closed here: the supervisor then has nobody to talk to, and ends.
	control, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{theirs}
	for at := high - 1; len(files) < 60; at = 0 { // one just below the binary, the others as low as they come, so that they are in the way of each other
		fd, err := unix.FcntlInt(theirs.Fd(), unix.F_DUPFD_CLOEXEC, at)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), "in the way"))
	}
	for i := len(files) - 1; i > 1; i-- { // low numbers last
		if j := len(files) - i + 1; j < i {
			files[i], files[j] = files[j], files[i]
		}
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	s := &Sandbox{id: "launched", runtime: &Runtime{binary: sealed, binaryPath: path}}
	if err := s.launch(files); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.pidfd.Close() }()
	var exe string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) { // until it has executed its program, of which nobody is told
		if exe, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", s.pid)); err != nil || strings.Contains(exe, "memfd:") {
			break
		}
	}
	if err != nil || !strings.Contains(exe, "memfd:") {
		t.Errorf("it runs %q, %v", exe, err)
	}
	_ = control.Close()
	s.abandon()
}
