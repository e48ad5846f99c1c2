package meter

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit in which the kernel tells CPU time (USER_HZ).
const tick = 10 * time.Millisecond

// stat is one line of /proc/<pid>/stat.
type stat struct {
	parent int
	self   time.Duration // user and system
	reaped time.Duration // the same of children that it has waited for, with theirs
}

func readStat(path string) (s stat, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	_, rest, ok := strings.Cut(string(data[max(0, strings.LastIndexByte(string(data), ')')):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 15 {
		return s, fmt.Errorf("%s: %q has too few fields", path, data)
	}
	var n [4]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(f[11+i], 10, 64); err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
	}
	s.parent, err = strconv.Atoi(f[1])
	s.self, s.reaped = time.Duration(n[0]+n[1])*tick, time.Duration(n[2]+n[3])*tick
	return s, err
}

// CPU is the time that a process itself has used, in steps of 10 ms.
func CPU(pid int) (time.Duration, error) {
	s, err := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	return s.self, err
}

// Tree is the time that a process and everything below it have used, those included that have ended and were waited for.
func Tree(pid int) (time.Duration, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	all := map[int]stat{}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat("/proc/" + e.Name() + "/stat"); err == nil { // it may have ended meanwhile
			all[id] = s
		}
	}
	if _, ok := all[pid]; !ok {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrNotExist)
	}
	var sum time.Duration
	for id, s := range all {
		above := id
		for above > 1 && above != pid {
			above = all[above].parent
		}
		if above == pid {
			sum += s.self + s.reaped
		}
	}
	return sum, nil
}

// Resident is the size of a process in memory, in bytes.
func Resident(pid int) (int64, error) {
	return kilobytes(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
}

// Available is the memory that the machine could give to programs, in bytes.
func Available() (int64, error) { return kilobytes("/proc/meminfo", "MemAvailable:") }

func kilobytes(path, key string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New(path + " does not say " + strings.TrimSuffix(key, ":"))
}
