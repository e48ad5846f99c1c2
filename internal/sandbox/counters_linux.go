//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const fileOfPeak = "memory.max_usage_in_bytes" // on v1

// counters are a group's own figures of the kernel; a figure that the machine does not keep is zero.
type counters struct {
	oomKills   int64
	memory     int64
	peakMemory int64
	cpu        time.Duration
	pids       int64
	unread     bool // one of what spent reads could not be read, and is zero
}

func (g group) counters() counters {
	c := g.spent()
	if path, ok := g.file("memory", "memory.usage_in_bytes", "memory.current"); ok {
		c.memory, _ = number(path)
	}
	if path, ok := g.file("pids", "pids.current", "pids.current"); ok {
		c.pids, _ = number(path)
	}
	return c
}

// spent are the counters that say something of a group whose processes have ended.
func (g group) spent() counters {
	oomKills, oomErr := g.oomKills()
	cpu, cpuErr := g.cpuTime()
	c := counters{oomKills: oomKills, cpu: cpu, unread: oomErr != nil || cpuErr != nil}
	if path, ok := g.file("memory", fileOfPeak, "memory.peak"); ok {
		c.peakMemory, _ = number(path)
	}
	return c
}

// oomKills counts processes of the group itself on v1, and of those below it too on v2.
func (g group) oomKills() (int64, error) {
	if path, ok := g.file("memory", "memory.oom_control", "memory.events"); ok {
		return keyed(path, "oom_kill")
	}
	return 0, nil
}

func number(path string) (int64, error) {
	text, err := readControl(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// keyed reads one value of a "key value" file.
func keyed(path, key string) (int64, error) {
	text, err := readControl(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// readControl reads a whole control file. It is not os.ReadFile, which first tells the poller about files of this kind.
func readControl(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	text := make([]byte, 0, 1024)
	for {
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return string(text), nil
		default:
			text = text[:len(text)+n]
		}
	}
}
