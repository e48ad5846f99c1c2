package orchestrator

import (
	"testing"
	"time"

	"rockpool/internal/orchestrator/agentconfig"
)

func TestWhatAConfigurationMeans(t *testing.T) {
	c := agentconfig.Default()
	c.Name, c.DataDir, c.BindAddr, c.Advertise.HTTP, c.Advertise.RPC = "s1", "/d", "10.0.0.1", "node.example", "192.0.2.1:9"
	c.Advertise.Serf, c.Server.ServerJoin.RetryInterval = "192.0.2.2", time.Minute
	c.Server.Enabled, c.Server.BootstrapExpect = true, 3
	c.Server.Encrypt = "MDEyMzQ1Njc4OTAxMjM0NQ=="
	c.Server.ServerJoin.RetryJoin = []string{"10.0.0.2", "servers.example:7000", "fd00::1"}
	c.TLS.HTTP, c.TLS.CAFile = true, "ca.pem"
	got, err := agentConfig(c, "token")
	if err != nil {
		t.Fatal(err)
	}
	if got.Role != ServerOnly || got.Address != "10.0.0.1:4646" || got.Advertise != "node.example:4646" || got.Token != "token" || got.Name != "s1" {
		t.Errorf("the agent is %+v", got)
	}
	cl := got.Server.Cluster
	if cl.Expect != 3 || cl.RPCAddress != "10.0.0.1:4647" || cl.GossipAddress != "10.0.0.1:4648" || cl.AdvertiseRPC != "192.0.2.1:9" || cl.AdvertiseGossip != "192.0.2.2" || cl.JoinInterval != time.Minute || string(cl.GossipKey) != "0123456789012345" {
		t.Errorf("the cluster is %+v", cl)
	}
	c.Advertise.Serf = ""
	if got, err := agentConfig(c, "token"); err != nil || got.Server.Cluster.AdvertiseGossip != "192.0.2.1" {
		t.Errorf("gossip is advertised at %q, %v; want the host of rpc", got.Server.Cluster.AdvertiseGossip, err)
	}
	if len(cl.Join) != 3 || cl.Join[0] != "10.0.0.2:4648" || cl.Join[1] != "servers.example:7000" || cl.Join[2] != "[fd00::1]:4648" {
		t.Errorf("it joins %q", cl.Join)
	}
	if got.Server.Keep.Jobs != 4*time.Hour || !got.TLS.HTTP || got.TLS.CAFile != "ca.pem" {
		t.Errorf("the server is %+v", got.Server)
	}

	c.Server.Enabled, c.Client.Enabled, c.Client.Servers = false, true, []string{"10.0.0.1:4646", "http://s2:1"}
	c.Client.HostVolume = map[string]agentconfig.HostVolume{"v": {Path: "/v", ReadOnly: true}}
	c.Client.Images.MaxSize, c.Client.MemoryTotalMB, c.Client.OnStop = 3, 512, agentconfig.Remove
	got, err = agentConfig(c, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Role != NodeOnly || got.Node.Servers[0] != "https://10.0.0.1:4646" || got.Node.Servers[1] != "http://s2:1" || got.Server.Cluster.RPCAddress != "" {
		t.Errorf("the node is %+v", got)
	}
	if v := got.Node.Volumes["v"]; v == nil || v.Path != "/v" || !v.ReadOnly || got.Images.MaxBytes != 3<<30 || got.Node.TotalMemory != 512 || !got.RemoveOnStop {
		t.Errorf("the node is %+v", got)
	}
	c.Server.Enabled, c.Client.Servers, c.Server.BootstrapExpect = true, nil, 1
	if got, err = agentConfig(c, ""); err != nil || got.Role != ServerAndNode {
		t.Errorf("both are %+v, %v", got, err)
	}
}
