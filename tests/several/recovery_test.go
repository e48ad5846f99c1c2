package several

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// many is the number of idle runners that a start finds.
const many = 1000

// job is a template's or a runner's as gateways make them, but of entries in memory.
func job(id string, meta map[string]string) map[string]any {
	task := func(name string) map[string]any {
		return map[string]any{
			"Name": name, "Driver": "mock", "Config": map[string]any{}, "LogConfig": map[string]any{"MaxFiles": 1, "MaxFileSizeMB": 1},
			"Resources": map[string]any{"CPU": 1, "MemoryMB": 10, "MemoryMaxMB": 10},
		}
	}
	group := func(name string, count int, t map[string]any) map[string]any {
		return map[string]any{
			"Name": name, "Count": count, "Tasks": []any{t}, "RestartPolicy": map[string]any{"Attempts": 0, "Mode": "fail"},
			"ReschedulePolicy": map[string]any{"Attempts": 0, "Unlimited": false}, "EphemeralDisk": map[string]any{"SizeMB": 10},
		}
	}
	config := group("config", 0, task("config"))
	config["Meta"] = meta
	return map[string]any{"Job": map[string]any{
		"ID": id, "Name": id, "Type": "batch", "Datacenters": []string{"dc1"},
		"TaskGroups": []any{group("default-group", 1, task("default-task")), config},
	}}
}

func (w *world) register(ctx context.Context, id string, meta map[string]string) error {
	body, err := json.Marshal(job(id, meta))
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, w.orchestrator+"/v1/jobs", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("X-Nomad-Token", management)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var text bytes.Buffer
		_, _ = text.ReadFrom(resp.Body)
		return fmt.Errorf("register %s: status %d: %s", id, resp.StatusCode, &text)
	}
	return nil
}

// A gateway that starts knows a thousand runners within two seconds, whether it is alone or one of several.
func TestAThousandRunnersAreRecovered(t *testing.T) {
	w := newWorld(t, "--enable-mock")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.register(ctx, "template-10", map[string]string{"prewarmingPoolSize": fmt.Sprint(many), "used": "false"}); err != nil {
		t.Fatal(err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range many + 1 {
		meta := map[string]string{"used": "false"}
		if i == many {
			meta = map[string]string{"used": "true", "timeout": "600"}
		}
		g.Go(func() error { return w.register(gctx, fmt.Sprintf("10-%08x-e67d-11f1-bfb5-962598be1b03", i), meta) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.eventually(30*time.Second, "all run", func() bool {
		var allocs []struct{ ClientStatus string }
		if err := w.ask("/v1/allocations", &allocs); err != nil {
			t.Fatal(err)
		}
		running := 0
		for _, a := range allocs {
			if a.ClientStatus == "running" {
				running++
			}
		}
		return running == many+2
	})
	for name, env := range map[string][]string{"alone": {"ROCKPOOL_SERVER_PEERADDRESS="}, "one of several": nil} {
		began := time.Now()
		one := w.gateway(env...)
		listens := time.Since(began)
		all, err := one.Statistics(ctx) // held until it is complete
		took := time.Since(began)
		if err != nil {
			t.Fatal(err)
		}
		if st := all["10"]; st.IdleRunners != many || st.UsedRunners != 1 {
			t.Errorf("%s: the first answer says %+v", name, st)
		}
		t.Logf("%s: listens after %v, %d runners known after %v", name, listens.Round(time.Millisecond), many+1, took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("%s: recovery took %v", name, took)
		}
		if err := one.Stop(); err != nil {
			t.Error(err)
		}
	}
	if n := len(w.jobs()); n != many+1 {
		t.Errorf("afterwards there are %d runners", n)
	}
}
