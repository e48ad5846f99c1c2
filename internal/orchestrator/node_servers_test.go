package orchestrator_test

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/link"
	nodeagent "rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/node/serve"
)

func TestANodeFollowsItsServers(t *testing.T) {
	p := newPKI(t)
	var all []*fellow
	for _, name := range []string{"a", "b", "c"} {
		var join []string
		if len(all) > 0 {
			join = []string{all[0].cfg.Cluster.GossipAddress}
		}
		s := p.server(t, name, 3, join...)
		s.cfg.Address = freePort(t)
		s.start(t)
		defer s.stop()
		all = append(all, s)
	}
	leaderOf(t, all)

	dir := t.TempDir()
	identity, err := nodeagent.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	first := all[0]
	remote, err := nodeagent.NewRemote([]string{first.http.URL}, identity, "root", &http.Client{Transport: transport}) // it is told of one alone
	if err != nil {
		t.Fatal(err)
	}
	a, err := nodeagent.New(nodeagent.Config{DataDir: dir, Drivers: []driver.Driver{mock.New()}, Servers: remote, OnStop: nodeagent.Remove, Log: logging.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Errorf("node: %v", err)
		}
	})
	wg.Go(func() { _ = link.Keep(ctx, remote, serve.New(a, nil, inspect.Process{}, nil), logging.Discard()) })
	connected := func(s *fellow) func() bool {
		return func() bool { return slices.Contains(s.server.Nodes().Nodes(), a.ID()) }
	}
	for _, s := range all {
		until(t, "the node is connected to "+s.cfg.Name, connected(s))
	}

	// Whoever asks any of them about the node is answered.
	for _, s := range all {
		retried(t, s.cfg.Name+": figures of the node", func() error {
			_, err := s.client(t).Nodes().Stats(a.ID(), nil)
			return err
		})
	}

	first.stop()
	left := all[1:]
	leaderOf(t, left)
	j := &api.Job{ID: new("after"), Type: new("batch"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
		Tasks: []*api.Task{{Name: "t", Driver: "mock", Config: map[string]any{}}}}}}
	retried(t, "register", func() error {
		_, _, err := left[0].client(t).Jobs().Register(j, nil)
		return err
	})
	until(t, "the job runs on the node", func() bool {
		list, _, err := left[1].client(t).Jobs().Allocations("after", true, nil)
		return err == nil && len(list) == 1 && list[0].ClientStatus == "running"
	})
	first.start(t)
	until(t, "the node is connected to the server that is back", connected(first))
}
