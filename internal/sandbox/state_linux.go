//go:build linux && cgo

package sandbox

// state is what a later process of the node needs to find a sandbox again. It lies in the sandbox's private directory,
// beside the socket of its supervisor.
type state struct {
	Spec    Spec
	Slot    int
	PID     int    // of process 1, on the host
	Started string // its start time in ticks: a number can pass to another process, number and time cannot
	BootID  string
}

const (
	stateFile  = "state.json"
	socketFile = "supervisor.sock"
)

func (r *Runtime) readState(id string) (s state, err error) {
	err = ReadRecord(r.stateDir(id), stateFile, &s)
	return s, err
}

func (r *Runtime) writeState(id string, s state) error {
	return WriteRecord(r.stateDir(id), stateFile, s)
}

// identify opens the process that the state tells of.
func (r *Runtime) identify(s state) (int, error) {
	if s.BootID != r.bootID {
		return -1, ErrEnded
	}
	return FindProcess(s.PID, s.Started)
}
