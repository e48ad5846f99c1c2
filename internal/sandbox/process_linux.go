//go:build linux && cgo

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What a later process of the node needs to take back what an earlier one started, whichever runtime did: a record on disk, and the process that it names.

// FindProcess opens the process that had this number and start time. The start time is compared after the descriptor is open, so what was compared is what
// is held. Any other process of that number, and none, is [ErrEnded]. The descriptor does not block.
func FindProcess(pid int, started string) (pidfd int, err error) {
	if pid == 0 {
		return -1, ErrEnded
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrEnded, err)
	}
	if now, err := StartTime(pid); err != nil || now != started {
		_ = unix.Close(fd)
		return -1, ErrEnded
	}
	return fd, nil
}

// StartTime reads field 22 of /proc/<pid>/stat, in ticks since the machine's start, counted after the command name, which may contain anything.
func StartTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	rest := string(text)
	fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:])
	if len(fields) < 20 {
		return "", errors.New("unreadable process status")
	}
	return fields[19], nil
}

// Ended asks without waiting whether the process of a pidfd has ended.
func Ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == nil {
			return n > 0
		}
		if !errors.Is(err, unix.EINTR) {
			return true
		}
	}
}

// ReadRecord reads a JSON file of a sandbox's state directory. One that is not there is [ErrUnknown].
func ReadRecord(dir, name string, into any) error {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrUnknown, filepath.Base(dir))
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// WriteRecord replaces a JSON file by a rename. It is not synced: after a crash of the machine no sandbox is left to find.
func WriteRecord(dir, name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
