package service

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Baseline is what sandboxes can leave behind on a machine.
type Baseline map[string]bool

// TakeBaseline looks at the machine: supervisors and their descendants, mounts, control groups, network namespaces.
func TakeBaseline() (Baseline, error) {
	b := Baseline{}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", p.Name(), "status"))
		if err != nil {
			continue // it has ended meanwhile
		}
		// A zombie whose parent is init has been handed over: nothing of ours can reap it any more.
		if bytes.Contains(status, []byte("State:\tZ")) && bytes.Contains(status, []byte("PPid:\t1\n")) {
			continue
		}
		// NSpid lists the process's id in every pid namespace it is in: more than one number means a sandbox.
		for line := range bytes.Lines(status) {
			if f := strings.Fields(string(line)); len(f) > 2 && f[0] == "NSpid:" {
				state, _, _ := strings.Cut(string(status), "Groups:")
				b[fmt.Sprintf("process %d in a pid namespace: %s", pid, strings.Join(strings.Fields(state), " "))] = true
			}
		}
		if ns, err := os.Readlink(filepath.Join("/proc", p.Name(), "ns/net")); err == nil {
			b["network namespace "+ns] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 {
			b["mount "+f[4]] = true
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		// The project's own empty parent group is configuration, not a trace of a runner.
		if err == nil && d.IsDir() && strings.Contains(path, "/rockpool/") {
			b["control group "+path] = true
		}
		return nil
	})
	return b, err
}

// Since lists what is there now and was not at the baseline.
func (b Baseline) Since() ([]string, error) {
	now, err := TakeBaseline()
	if err != nil {
		return nil, err
	}
	var more []string
	for k := range now {
		if !b[k] {
			more = append(more, k)
		}
	}
	sort.Strings(more)
	return more, nil
}
