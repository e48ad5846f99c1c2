package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"rockpool/tests/load"
)

const (
	deaths   = 5
	callTime = 500 * time.Millisecond // of a write that may meet a server without a leader
)

// server is one of three.
type server struct {
	ip, config string
	cmd        *exec.Cmd
}

func (s *server) url() string { return "http://" + s.ip + ":4646" }

// start runs the process. Its log goes beside its configuration.
func (s *server) start(bin string) error {
	log, err := os.OpenFile(s.config+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(bin, "agent", "--config", s.config)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return s.cmd.Start()
}

func (s *server) end(sig syscall.Signal) error {
	if s.cmd == nil || s.cmd.Process == nil {
		return nil
	}
	err := s.cmd.Process.Signal(sig)
	_ = s.cmd.Wait() // how it ended was decided by the signal
	s.cmd = nil
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return err
}

// failover kills the leader of three servers again and again and measures from its death until another accepts a write. All that was accepted has to be there in
// the end. The servers have loopback addresses of their own.
func failover(ctx context.Context, b *bench) (err error) {
	var servers []*server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.end(syscall.SIGTERM))
		}
	}()
	var ips []string
	for i := range 3 {
		ips = append(ips, fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()>>8&63, os.Getpid()&255, 1+i))
	}
	for i, ip := range ips {
		s := &server{ip: ip, config: filepath.Join(b.dir, fmt.Sprintf("server-%d.hcl", i))}
		others := slices.Delete(slices.Clone(ips), i, i+1)
		text := fmt.Sprintf("name = \"s%d\"\ndata_dir = %q\nbind_addr = %q\nserver {\n  enabled = true\n  bootstrap_expect = 3\n  server_join {\n    retry_join = [\"%s\"]\n    retry_interval = \"1s\"\n  }\n}\n",
			i, filepath.Join(b.dir, fmt.Sprint("server-", i)), ip, strings.Join(others, `", "`))
		if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
			return err
		}
		if err := s.start(b.orchestrator); err != nil {
			return err
		}
		servers = append(servers, s)
	}
	var calls load.Samples
	var accepted []string
	begin := time.Now()
	for i := range deaths {
		leader, err := leaderOf(ctx, servers)
		if err != nil {
			return err
		}
		var living []*server
		for _, s := range servers {
			if s.ip != leader.ip {
				living = append(living, s)
			}
		}
		start := time.Now()
		if err := leader.end(syscall.SIGKILL); err != nil {
			return err
		}
		id, err := firstAccepted(ctx, living, fmt.Sprint("failover-", i))
		if err != nil {
			return err
		}
		calls.Since(start)
		accepted = append(accepted, id)
		if err := leader.start(b.orchestrator); err != nil {
			return err
		}
		if err := caughtUp(ctx, leader, accepted); err != nil {
			return err
		}
	}
	return b.addCalls("Failover", begin, &calls)
}

// leaderOf is the one that all servers say leads.
func leaderOf(ctx context.Context, servers []*server) (*server, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the servers do not agree who leads"))
	defer cancel()
	for {
		said := map[string]int{}
		for _, s := range servers {
			var at string
			if get(ctx, s.url()+"/v1/status/leader", &at) == nil {
				ip, _, _ := strings.Cut(at, ":")
				said[ip]++
			}
		}
		for _, s := range servers {
			if said[s.ip] == len(servers) {
				return s, nil
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// firstAccepted registers jobs through all of the servers until one is acknowledged, and returns its id.
func firstAccepted(ctx context.Context, servers []*server, name string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("no write is accepted any more"))
	defer cancel()
	stop, end := context.WithCancel(ctx)
	first := make(chan string, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() {
			for n := 0; stop.Err() == nil; n++ {
				id := fmt.Sprintf("%s-%d-%d", name, i, n)
				call, cancel := context.WithTimeout(stop, callTime)
				err := send(call, http.MethodPut, s.url()+"/v1/jobs", mockJob(id, 0))
				cancel()
				if err == nil {
					first <- id
					return
				}
				_ = pause(stop, 10*time.Millisecond)
			}
		})
	}
	defer wg.Wait()
	defer end()
	select {
	case id := <-first:
		return id, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// caughtUp waits until a server itself has all of the jobs.
func caughtUp(ctx context.Context, s *server, jobs []string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var list []struct{ ID string }
		err := get(ctx, s.url()+"/v1/jobs?stale", &list)
		missing := slices.DeleteFunc(slices.Clone(jobs), func(id string) bool {
			return slices.ContainsFunc(list, func(j struct{ ID string }) bool { return j.ID == id })
		})
		if err == nil && len(missing) == 0 {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("%s lacks accepted jobs: %q, %v", s.ip, missing, err)
		}
	}
}

func get(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %d", url, resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
