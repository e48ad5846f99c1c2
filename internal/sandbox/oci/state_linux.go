//go:build linux && cgo

package oci

import (
	"os"

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

const stateFile = "state.json"

func (r *Runtime) readState(id string) (s state, err error) {
	err = sandbox.ReadRecord(r.stateDir(id), stateFile, &s)
	return s, err
}

// identify opens the process that the state tells of.
func (r *Runtime) identify(s state) (*os.File, error) {
	if s.BootID != r.bootID {
		return nil, sandbox.ErrEnded
	}
	fd, err := sandbox.FindProcess(s.PID, s.Started)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "first process of "+s.Spec.ID), nil
}
