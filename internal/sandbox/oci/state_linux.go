//go:build linux && cgo

package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

// state is what a later process of the node needs to find a sandbox again.
type state struct {
	Spec    sandbox.Spec
	Slot    int
	IDBase  uint32
	PID     int    // of the container's first process, on the node; 0 until it runs
	Started string // its start time in ticks: a number can pass to another process, number and time cannot
	BootID  string
}

func (r *Runtime) readState(id string) (state, error) {
	var s state
	text, err := os.ReadFile(filepath.Join(r.stateDir(id), "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w: %s", sandbox.ErrUnknown, id)
	}
	if err != nil {
		return s, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

// writeJSON replaces a file of a sandbox by a rename.
func (r *Runtime) writeJSON(id, name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(r.stateDir(id), name)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// identify opens the process that the state tells of. The start time is compared after the descriptor is open, so what
// was compared is what is held.
func (r *Runtime) identify(s state) (*os.File, error) {
	if s.PID == 0 || s.BootID != r.bootID {
		return nil, sandbox.ErrEnded
	}
	fd, err := unix.PidfdOpen(s.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sandbox.ErrEnded, err)
	}
	if started, err := startTime(s.PID); err != nil || started != s.Started {
		_ = unix.Close(fd)
		return nil, sandbox.ErrEnded
	}
	return os.NewFile(uintptr(fd), "first process of "+s.Spec.ID), nil
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
