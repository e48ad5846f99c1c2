package consensus_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/orchestrator/consensus"
)

// TestAServerWhoseDiskIsFullEndsAndComesBack needs a file system of its own that can be filled.
func TestAServerWhoseDiskIsFullEndsAndComesBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a file system to fill needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("no file system to fill: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	r := consensus.New(consensus.Config{Dir: dir, ServerID: "one", Machine: &sum{}, SegmentBytes: 1 << 20})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	for lead := range r.Leadership() {
		if lead {
			break
		}
	}
	entry := make([]byte, 64<<10)
	entry[0] = 1
	acknowledged := uint64(0)
	for {
		got, _, err := r.Apply(t.Context(), entry)
		if err != nil {
			break
		}
		acknowledged = got.(uint64)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "start it again") {
		t.Errorf("a server whose disk is full ended with %v", err)
	}
	// Somebody makes room: a bigger disk.
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	again, stop := run(t, dir)
	if err := again.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, _, err := again.Apply(t.Context(), []byte{1})
	if err != nil || got.(uint64) <= acknowledged {
		t.Errorf("after the restart it has %v, acknowledged were %d, %v", got, acknowledged, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}
