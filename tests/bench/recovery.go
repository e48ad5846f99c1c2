package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/tests/load"
	"rockpool/tests/service"
)

// environmentJob is a template's or a runner's as gateways make them, but of entries in memory.
func environmentJob(id string, meta map[string]string) map[string]any {
	config := mockGroup("config", 0, "config", map[string]any{})
	config["Meta"] = meta
	return map[string]any{"Job": map[string]any{
		"ID": id, "Name": id, "Type": "batch", "Datacenters": []string{"dc1"},
		"TaskGroups": []any{mockGroup("default-group", 1, "default-task", map[string]any{}), config},
	}}
}

// recovery starts a gateway, several times, beside a cluster that has runners already, and measures until it answers with all of them.
func recovery(ctx context.Context, b *bench) error {
	return withOrchestrator(ctx, b, func(o *orchestrator) error {
		template := fmt.Sprintf("template-%d", env)
		if err := send(ctx, http.MethodPut, o.url+"/v1/jobs", environmentJob(template, map[string]string{"prewarmingPoolSize": fmt.Sprint(recovered), "used": "false"})); err != nil {
			return err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		for i := range recovered {
			g.Go(func() error {
				return send(gctx, http.MethodPut, o.url+"/v1/jobs", environmentJob(fmt.Sprintf("%d-%08x-e67d-11f1-bfb5-962598be1b03", env, i), map[string]string{"used": "false"}))
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for running := 0; running < recovered+1; running++ {
			select {
			case _, ok := <-o.running:
				if !ok {
					return o.ended()
				}
			case <-time.After(30 * time.Second):
				return fmt.Errorf("%d of %d runners run", running, recovered)
			}
		}
		var calls load.Samples
		begin := time.Now()
		for i := range 5 {
			start := time.Now()
			err := b.withService(ctx, fmt.Sprint("recovery-", i), []string{"ROCKPOOL_NOMAD_ADDRESS=" + o.url}, func(s *service.Service) error {
				all, err := s.Statistics(ctx) // held until it is complete
				if err != nil {
					return err
				}
				calls.Since(start)
				if got := all[fmt.Sprint(env)]; got.IdleRunners != recovered || got.UsedRunners != 0 {
					return fmt.Errorf("the first answer says %+v", got)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return b.addCalls("Recovery", begin, &calls)
	}, mockAgent...)
}
