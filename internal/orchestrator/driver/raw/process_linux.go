package raw

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// errNotOurs means that a process has ended and only its parent learns how.
var errNotOurs = errors.New("the process was started by an earlier agent: how it ended is not known")

// process is a running process, held by a descriptor that never comes to mean another one.
type process struct {
	pid    int
	start  uint64
	zombie bool // had ended already when it was attached
	handle *os.File
}

func attach(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, handle: os.NewFile(uintptr(fd), "pidfd")}
	if p.start, p.zombie, err = startTime(pid); err != nil {
		_ = p.handle.Close()
		return nil, err
	}
	return p, nil
}

// startTime reads field 22 of /proc/pid/stat, which follows a name that may hold anything.
func startTime(pid int) (ticks uint64, zombie bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, fmt.Errorf("read process %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("read process %d: too few fields", pid)
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, fields[0] == "Z", err
}

// ended waits until the process has ended; it is not reaped yet. Closing the handle ends the wait with os.ErrClosed.
func (p *process) ended() error {
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
}

// wait waits for the end, kills what is left of the group while its id is still taken, and reaps the process.
func (p *process) wait() (syscall.WaitStatus, error) {
	if err := p.ended(); err != nil {
		return 0, err
	}
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.pid, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.ECHILD):
			return 0, errNotOurs
		}
		return status, err
	}
}
