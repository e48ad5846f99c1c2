package orchestrator_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

func TestOperatorsAtAServerAlone(t *testing.T) {
	_, h := single(t, "root", false)
	c, err := api.NewClient(&api.Config{Address: h.URL, SecretID: "root"})
	if err != nil {
		t.Fatal(err)
	}
	op := c.Operator()

	until(t, "figures of autopilot", func() bool {
		m, _, err := op.MetricsSummary(nil)
		if err != nil {
			t.Fatal(err)
		}
		healthy, depth := -1.0, -1.0
		for _, g := range m.Gauges {
			switch g.Name {
			case "nomad.nomad.autopilot.healthy":
				healthy = float64(g.Value)
			case "nomad.nomad.plan.queue_depth":
				depth = float64(g.Value)
			}
		}
		return healthy == 1 && depth == 0
	})

	conf, _, err := op.AutopilotGetConfiguration(nil)
	if err != nil || !conf.CleanupDeadServers || conf.LastContactThreshold != 200*time.Millisecond || conf.MaxTrailingLogs != 250 || conf.ServerStabilizationTime != 10*time.Second {
		t.Fatalf("autopilot: %+v, %v", conf, err)
	}
	conf.MinQuorum, conf.LastContactThreshold = 3, time.Second
	if _, err := op.AutopilotSetConfiguration(conf, nil); err != nil {
		t.Fatal(err)
	}
	conf, _, err = op.AutopilotGetConfiguration(nil)
	if err != nil || conf.MinQuorum != 3 || conf.LastContactThreshold != time.Second || conf.ModifyIndex == 0 {
		t.Fatalf("autopilot: %+v, %v", conf, err)
	}
	conf.MinQuorum = 5
	if done, _, err := op.AutopilotCASConfiguration(conf, nil); err != nil || !done {
		t.Errorf("compare-and-set: %v, %v", done, err)
	}
	if done, _, err := op.AutopilotCASConfiguration(conf, nil); err != nil || done {
		t.Errorf("compare-and-set with an old index: %v, %v", done, err)
	}
	if _, err := op.AutopilotSetConfiguration(&api.AutopilotConfiguration{EnableRedundancyZones: true}, nil); err == nil {
		t.Error("redundancy zones are accepted")
	}
	until(t, "health", func() bool {
		health, _, err := op.AutopilotServerHealth(nil)
		return err == nil && health.Healthy && len(health.Servers) == 1 && health.Servers[0].Leader && health.Leader == health.Servers[0].ID
	})

	raft, err := op.RaftGetConfiguration(nil)
	if err != nil || len(raft.Servers) != 1 || !raft.Servers[0].Leader || !raft.Servers[0].Voter || raft.Servers[0].Node != "one.global" {
		t.Errorf("Raft's configuration: %+v, %v", raft, err)
	}
	for what, refused := range map[string]error{
		"the last server is removed":         op.RaftRemovePeerByID("one", nil),
		"nobody is removed":                  op.RaftRemovePeerByID("nobody", nil),
		"a server is removed by its address": op.RaftRemovePeerByAddress("127.0.0.1:1", nil),
		"nobody is to lead":                  op.RaftTransferLeadershipByID("nobody", nil),
	} {
		if refused == nil {
			t.Error(what)
		}
	}
	if err := op.RaftTransferLeadershipByID("one", nil); err != nil {
		t.Errorf("leadership goes to who has it: %v", err)
	}

	members, err := c.Agent().Members()
	if err != nil || len(members.Members) != 1 || members.Members[0].Status != "alive" || members.Members[0].Tags["role"] == "" {
		t.Errorf("members: %+v, %v", members, err)
	}
	if _, err := c.Agent().Join("127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "alone") {
		t.Errorf("join: %v", err)
	}
	if err := c.Agent().ForceLeave("x"); err == nil {
		t.Error("somebody is forced to leave a server that is alone")
	}
	if servers, err := c.Agent().Servers(); err != nil || len(servers) != 1 {
		t.Errorf("servers: %v, %v", servers, err)
	}
	if regions, err := c.Regions().List(); err != nil || len(regions) != 1 || regions[0] != "global" {
		t.Errorf("regions: %v, %v", regions, err)
	}

	if _, _, err := c.Jobs().Register(clusterJob("kept"), nil); err != nil {
		t.Fatal(err)
	}
	in, err := op.Snapshot(nil)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(in) // the client verifies the digest
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Jobs().Register(clusterJob("lost"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := op.SnapshotRestore(strings.NewReader("not an archive"), nil); err == nil {
		t.Error("anything is restored")
	}
	if _, err := op.SnapshotRestore(bytes.NewReader(archive), nil); err != nil {
		t.Fatalf("restore: %v", err)
	}
	until(t, "the state of before", func() bool {
		_, _, kept := c.Jobs().Info("kept", nil)
		_, _, lost := c.Jobs().Info("lost", nil)
		return kept == nil && lost != nil && strings.Contains(lost.Error(), "404")
	})
	if _, _, err := c.Jobs().Register(clusterJob("more"), nil); err != nil {
		t.Errorf("after the restore: %v", err)
	}

	// Without rights nothing of this is had.
	for _, r := range []struct{ method, path string }{
		{"GET", "/v1/operator/snapshot"}, {"PUT", "/v1/operator/snapshot"}, {"GET", "/v1/operator/raft/configuration"}, {"DELETE", "/v1/operator/raft/peer?id=one"},
		{"PUT", "/v1/operator/raft/transfer-leadership?id=one"}, {"GET", "/v1/operator/autopilot/configuration"}, {"PUT", "/v1/operator/autopilot/configuration"},
		{"GET", "/v1/operator/autopilot/health"}, {"PUT", "/v1/agent/join?address=x"}, {"PUT", "/v1/agent/force-leave?node=x"}, {"GET", "/v1/agent/members"},
		{"PUT", "/v1/acl/identity/client-introduction-token"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, h.URL+r.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s without a token: %d", r.method, r.path, resp.StatusCode)
		}
	}
}
