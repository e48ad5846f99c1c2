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

// state is what a later process of the node needs to find a sandbox again. It lies in the sandbox's private directory,
// beside the socket of its supervisor.
type state struct {
	Spec    Spec
	Slot    int
	PID     int    // of process 1, on the host; 0 until it answered
	Started string // its start time in ticks: a number can pass to another process, number and time cannot
	BootID  string
}

const (
	stateFile  = "state.json"
	socketFile = "supervisor.sock"
)

func (r *Runtime) readState(id string) (state, error) {
	var s state
	text, err := os.ReadFile(filepath.Join(r.stateDir(id), stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w: %s", ErrUnknown, id)
	}
	if err != nil {
		return s, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

// writeState replaces the file by a rename. It is not synced: after a crash of the machine no sandbox is left to find.
func (r *Runtime) writeState(id string, s state) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(r.stateDir(id), stateFile)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// identify opens the process that the state tells of. The start time is compared after the descriptor is open, so what
// was compared is what is held.
func (r *Runtime) identify(s state) (int, error) {
	if s.PID == 0 || s.BootID != r.bootID {
		return -1, ErrEnded
	}
	fd, err := unix.PidfdOpen(s.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrEnded, err)
	}
	if started, err := startTime(s.PID); err != nil || started != s.Started {
		_ = unix.Close(fd)
		return -1, ErrEnded
	}
	return fd, nil
}

// startTime reads field 22 of /proc/<pid>/stat, counted after the command name, which may contain anything.
func startTime(pid int) (string, error) {
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
