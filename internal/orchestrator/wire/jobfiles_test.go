package wire_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rockpool/internal/orchestrator/jobspec"
	"rockpool/internal/orchestrator/wire"
)

// given are the variables that have no default.
var given = map[string]string{"gateway.nomad.hcl": `nomad_address = "192.0.2.1"`}

// Gateways that do not know of each other both keep the pools.
func TestSeveralGatewaysKnowWhereTheyReachEachOther(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/jobs/gateway.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	for _, replicas := range []int{1, 3} {
		j, err := jobspec.Parse("gateway.nomad.hcl", text, fmt.Sprintf("%s\nreplicas = %d", given["gateway.nomad.hcl"], replicas))
		if err != nil {
			t.Fatal(err)
		}
		group := j.TaskGroups[0]
		if *group.Count != replicas {
			t.Errorf("%d gateways, want %d", *group.Count, replicas)
		}
		ports := group.Networks[0].ReservedPorts
		if len(ports) != 1 || ports[0].Label != "http" || ports[0].To != 7200 {
			t.Fatalf("the ports are %+v", ports)
		}
		env := group.Tasks[0].Env
		// The node fills in the address of the machine and the port there: one of the allocation's own network reaches nobody else.
		if got := env["ROCKPOOL_SERVER_PEERADDRESS"]; got != "http://${NOMAD_ADDR_http}" {
			t.Errorf("%d gateways: the peer address is %q", replicas, got)
		}
		if env["ROCKPOOL_NOMAD_ADDRESS"] != "192.0.2.1" {
			t.Errorf("the cluster is at %q", env["ROCKPOOL_NOMAD_ADDRESS"])
		}
	}
	if _, err := jobspec.Parse("gateway.nomad.hcl", text, ""); err == nil || !strings.Contains(err.Error(), "nomad_address") {
		t.Errorf("without an address of the cluster: %v", err)
	}
}

func TestTheJobFilesRun(t *testing.T) {
	files, err := filepath.Glob("../../../deploy/jobs/*.nomad.hcl")
	if err != nil || len(files) < 7 {
		t.Fatalf("found %q, %v", files, err)
	}
	types := map[string]bool{}
	for _, path := range files {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			j, err := jobspec.Parse(name, text, given[name])
			if err != nil {
				t.Fatal(err)
			}
			if err := wire.Complete(j); err != nil {
				t.Fatal(err)
			}
			types[*j.Type] = true
			if p := wire.Validate(j); len(p.Errors) > 0 {
				t.Errorf("it is refused: %s", p.Text())
			}
		})
	}
	for _, want := range []string{"batch", "service", "system", "sysbatch"} {
		if !types[want] {
			t.Errorf("no file shows a job of type %s", want)
		}
	}
}
