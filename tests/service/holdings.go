package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Holdings is what one running service holds for its runners. Unlike a Baseline it does not see what other services on the machine do, so that it can be
// taken while they work.
type Holdings struct {
	Sandboxes   int // state directories
	Processes   int // in pid namespaces, zombies too
	Networks    int // network namespaces of those
	Groups      int // control groups of the service's sandboxes, with their executions', in all hierarchies
	Mounts      int // in the service's own mount namespace
	Descriptors int // of the service, without TCP connections, which come and go with their idle times
	Files       int // in the data directory, without the log of the server

	// What ended sandboxes left is not in the figures above, as it may wait for its removal for some seconds.
	Remains  int // state directories without a record, with their files and control groups
	OpenNets int // network namespaces that the service holds open
}

// Lasting is h without what goes in some seconds.
func (h Holdings) Lasting() Holdings {
	h.Remains, h.OpenNets = 0, 0
	return h
}

// sandboxIDs remembers the sandboxes that a service has had: their control groups carry these names.
type sandboxIDs struct {
	mu  sync.Mutex
	ids map[string]bool
}

// Holdings counts. Sandboxes that nobody looked at while they lived are known by Observe.
func (s *Service) Holdings() (h Holdings, err error) {
	remains, err := s.observe()
	if err != nil {
		return h, err
	}
	for _, ended := range remains {
		if ended {
			h.Remains++
		} else {
			h.Sandboxes++
		}
	}
	if h.Processes, h.Networks, err = s.processes(); err != nil {
		return h, err
	}
	if h.Groups, err = s.groups(remains); err != nil {
		return h, err
	}
	mounts, err := os.ReadFile(s.proc("mountinfo"))
	if err != nil {
		return h, err
	}
	h.Mounts = bytes.Count(mounts, []byte("\n"))
	if h.Descriptors, h.OpenNets, err = s.descriptors(); err != nil {
		return h, err
	}
	err = filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err == nil && d.IsDir() && filepath.Dir(path) == s.sandboxes() && remains[d.Name()]:
			return fs.SkipDir
		case err == nil && d.IsDir() && (path == filepath.Join(s.dir, "server") || path == filepath.Join(s.dir, "images")): // both keep what they have
			return fs.SkipDir
		case err == nil:
			h.Files++
		}
		return err
	})
	return h, err
}

// Settled is what the service holds once that has stayed the same for longer than what ended sandboxes left may wait for its removal.
func (s *Service) Settled(ctx context.Context) (h Holdings, err error) {
	const still = 4 * time.Second
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for since := time.Now(); time.Since(since) < still; {
		now, err := s.Holdings()
		if err != nil {
			return h, err
		}
		if now != h {
			h, since = now, time.Now()
		}
		select {
		case <-ctx.Done():
			return h, fmt.Errorf("what the service holds did not settle, at last %+v: %w", h, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return h, nil
}

// Observe notes which sandboxes there are.
func (s *Service) Observe() error {
	_, err := s.observe()
	return err
}

// observe says of each state directory whether its sandbox has ended.
func (s *Service) observe() (ended map[string]bool, err error) {
	entries, err := os.ReadDir(s.sandboxes())
	if err != nil {
		return nil, err
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	if s.seen.ids == nil {
		s.seen.ids = map[string]bool{}
	}
	ended = map[string]bool{}
	for _, e := range entries {
		if e.IsDir() {
			s.seen.ids[e.Name()] = true
			_, err := os.Stat(filepath.Join(s.sandboxes(), e.Name(), "state.json"))
			ended[e.Name()] = errors.Is(err, fs.ErrNotExist)
		}
	}
	return ended, nil
}

func (s *Service) sandboxes() string { return filepath.Join(s.dir, "sandboxes", "sandboxes") }

func (s *Service) proc(name string) string { return fmt.Sprintf("/proc/%d/%s", s.PID(), name) }

// processes counts the descendants of the service that are in a pid namespace.
func (s *Service) processes() (processes, networks int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, err
	}
	parent, inside := map[int]int{}, map[int]bool{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if err != nil {
			continue // it has ended meanwhile
		}
		for line := range strings.Lines(string(status)) {
			switch f := strings.Fields(line); {
			case len(f) == 2 && f[0] == "PPid:":
				parent[pid], _ = strconv.Atoi(f[1])
			case len(f) > 2 && f[0] == "NSpid:":
				inside[pid] = true
			}
		}
	}
	own, _ := os.Readlink(s.proc("ns/net"))
	nets := map[string]bool{}
	for pid := range inside {
		above := pid
		for above > 1 && above != s.PID() {
			above = parent[above]
		}
		if above != s.PID() {
			continue
		}
		processes++
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && ns != own {
			nets[ns] = true
		}
	}
	return processes, len(nets), nil
}

// groups counts those of sandboxes that were seen, but for the ended ones.
func (s *Service) groups(ended map[string]bool) (int, error) {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	n := 0
	parents, err := filepath.Glob("/sys/fs/cgroup/*/rockpool")
	if err != nil {
		return 0, err
	}
	for _, parent := range append(parents, "/sys/fs/cgroup/rockpool") {
		children, err := os.ReadDir(parent)
		if err != nil {
			continue // there is no such hierarchy
		}
		for _, c := range children {
			if !s.seen.ids[c.Name()] || ended[c.Name()] {
				continue
			}
			_ = filepath.WalkDir(filepath.Join(parent, c.Name()), func(_ string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					n++
				}
				return nil // it has gone meanwhile
			})
		}
	}
	return n, nil
}

func (s *Service) descriptors() (n, nets int, err error) {
	tcp := map[string]bool{}
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		text, err := os.ReadFile(s.proc(name))
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 9 {
				tcp["socket:["+f[9]+"]"] = true
			}
		}
	}
	entries, err := os.ReadDir(s.proc("fd"))
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		switch target, err := os.Readlink(s.proc("fd/" + e.Name())); {
		case err != nil || tcp[target]:
		case strings.HasPrefix(target, "net:["):
			nets++
		default:
			n++
		}
	}
	return n, nets, nil
}

// ResetPeak forgets the largest resident size so far.
func (s *Service) ResetPeak() error { return os.WriteFile(s.proc("clear_refs"), []byte("5"), 0) }

// Memory is the resident size of the service and the largest since ResetPeak, in bytes.
func (s *Service) Memory() (now, peak int64, err error) {
	text, err := os.ReadFile(s.proc("status"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return now, peak, nil
}
