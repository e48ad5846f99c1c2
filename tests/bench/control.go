package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"rockpool/tests/load"
)

// control measures the control plane by itself: one-task batch jobs of the driver mock, registered at a rate whether or not earlier ones run, over HTTP, with
// the log on disk. The time counts from when a job was due to be sent until the event stream says that it runs. This process and the orchestrator's share
// the machine.
func control(ctx context.Context, b *bench, rates []float64, during time.Duration) error {
	transport := http.DefaultTransport.(*http.Transport)
	transport.MaxIdleConnsPerHost, transport.MaxIdleConns = 1024, 1024
	for _, rate := range rates {
		if err := withOrchestrator(ctx, b, func(o *orchestrator) error {
			return sustained(ctx, b, o, rate, during)
		}, "-enable-mock", "-network-range", ""); err != nil {
			return fmt.Errorf("%.0f jobs a second: %w", rate, err)
		}
	}
	return nil
}

const (
	jobRuns   = time.Second      // a mock task
	lastOnes  = 60 * time.Second // for what was registered to run
	warmUpFor = time.Second      // its jobs are not counted
)

func sustained(ctx context.Context, b *bench, o *orchestrator, rate float64, during time.Duration) error {
	var mu sync.Mutex
	due := map[string]time.Time{} // guarded by mu; of those that do not run yet
	refused := 0                  // guarded by mu
	f := figure{name: fmt.Sprintf("register to running, mock driver, %.0f/s for %v", rate, during)}
	first := time.Now()
	before, err := cpuTime(o.pid)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	var sent sync.WaitGroup
	sent.Go(func() {
		_, err := load.Run(ctx, load.Options{Rate: rate, For: during + warmUpFor}, func(ctx context.Context, i int, at time.Time) error {
			id := fmt.Sprintf("control-%.0f-%d", rate, i)
			mu.Lock()
			due[id] = at
			mu.Unlock()
			err := send(ctx, http.MethodPut, o.url+"/v1/jobs", mockJob(id))
			if tooMany, ok := errors.AsType[*statusError](err); ok && tooMany.code == http.StatusTooManyRequests {
				mu.Lock()
				delete(due, id)
				refused++
				mu.Unlock()
				return nil
			}
			return err
		})
		done <- err
	})
	defer sent.Wait()
	var end <-chan time.Time
	var last time.Time
	for all := false; !all; {
		select {
		case r, ok := <-o.running:
			if !ok {
				return errors.New("the event stream ended")
			}
			mu.Lock()
			at, known := due[r.job]
			delete(due, r.job)
			all = end != nil && len(due) == 0
			mu.Unlock()
			if known {
				last = r.at
				if at.Sub(first) >= warmUpFor {
					f.samples = append(f.samples, r.at.Sub(at))
				}
			}
		case err := <-done:
			if err != nil {
				return err
			}
			end = time.After(lastOnes)
			mu.Lock()
			all = len(due) == 0
			mu.Unlock()
		case <-end:
			mu.Lock()
			defer mu.Unlock()
			return fmt.Errorf("%d jobs do not run %v after the last was registered", len(due), lastOnes)
		}
	}
	took := last.Sub(first)
	f.rate = float64(len(f.samples)) / (took - warmUpFor).Seconds()
	after, err := cpuTime(o.pid)
	if err != nil {
		return err
	}
	f.name += fmt.Sprintf(" (%d refused, %.2f cores of the orchestrator)", refused, (after-before).Seconds()/took.Seconds())
	b.add(f)
	return nil
}

func mockJob(id string) map[string]any {
	return map[string]any{"Job": map[string]any{
		"ID": id, "Name": id, "Type": "batch", "Datacenters": []string{"dc1"},
		"TaskGroups": []any{map[string]any{
			"Name": "g", "Count": 1, "EphemeralDisk": map[string]any{"SizeMB": 1},
			"ReschedulePolicy": map[string]any{"Attempts": 0, "Unlimited": false},
			"Tasks": []any{map[string]any{
				"Name": "t", "Driver": "mock", "Config": map[string]any{"run_for": jobRuns.String()},
				"Resources": map[string]any{"CPU": 1, "MemoryMB": 10},
			}},
		}},
	}}
}
