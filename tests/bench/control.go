package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"rockpool/tests/bench/report"
	"rockpool/tests/load"
	"rockpool/tests/meter"
)

const (
	jobRuns  = time.Second      // a mock task
	lastOnes = 60 * time.Second // for what was registered to run
)

// manyJobs measures the control plane by itself: one-task batch jobs of the driver mock, registered at a rate whether or not earlier ones run, over HTTP, with
// the log on disk. The time counts from when a job was due to be sent until the event stream says that it runs. This process and the orchestrator's share
// the machine, so that it does no more than it has to: jobs are text already, and there is no client of net/http's.
func manyJobs(ctx context.Context, b *bench) error {
	return withOrchestrator(ctx, b, func(o *orchestrator) error { return b.sustained(ctx, o, more*jobRate) }, mockAgent...)
}

func (b *bench) sustained(ctx context.Context, o *orchestrator, rate float64) error {
	var sent sync.WaitGroup
	defer sent.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := load.NewClient(ctx, o.url)
	if err != nil {
		return err
	}
	const name = "the name of a job"
	form, err := json.Marshal(mockJob(name, jobRuns))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	due := map[string]time.Time{} // guarded by mu; of those that do not run yet
	refused := 0                  // guarded by mu
	var calls load.Samples
	begin := time.Now()
	before, err := meter.CPU(o.pid)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	sent.Go(func() {
		_, err := load.Run(ctx, load.Options{Rate: rate, For: b.during}, func(_ context.Context, i int, at time.Time) error {
			id := fmt.Sprintf("control-%d", i)
			mu.Lock()
			due[id] = at
			mu.Unlock()
			status, answer, err := client.Do(http.MethodPut, "/v1/jobs", bytes.ReplaceAll(form, []byte(name), []byte(id)))
			switch {
			case err != nil:
				return err
			case status == http.StatusTooManyRequests:
				mu.Lock()
				defer mu.Unlock()
				delete(due, id)
				refused++
			case status != http.StatusOK:
				return fmt.Errorf("job %s: %d %s", id, status, answer)
			}
			return nil
		})
		done <- err
	})
	var end <-chan time.Time
	for all := false; !all; {
		select {
		case r, ok := <-o.running:
			if !ok {
				return o.ended()
			}
			mu.Lock()
			at, known := due[r.job]
			delete(due, r.job)
			all = end != nil && len(due) == 0
			mu.Unlock()
			if known {
				calls.Add(load.Sample{End: r.at, Took: r.at.Sub(at)})
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
	after, err := meter.CPU(o.pid)
	if err != nil {
		return err
	}
	sorted := calls.Sorted()
	note := fmt.Sprintf("%d refused, %.2f cores of the orchestrator", refused, (after-before).Seconds()/time.Since(begin).Seconds())
	return b.add("JobsOffered", report.Measurement{Begin: begin, Calls: sorted, Rate: load.Answered(sorted, begin, b.during), Note: note})
}

// mockJob is a job of one entry in memory; it ends after a time, or never when that is 0.
func mockJob(id string, runs time.Duration) map[string]any {
	config := map[string]any{}
	if runs > 0 {
		config["run_for"] = runs.String()
	}
	return map[string]any{"Job": map[string]any{
		"ID": id, "Name": id, "Type": "batch", "Datacenters": []string{"dc1"},
		"TaskGroups": []any{mockGroup("g", 1, "t", config)},
	}}
}

func mockGroup(name string, count int, task string, config map[string]any) map[string]any {
	return map[string]any{
		"Name": name, "Count": count, "EphemeralDisk": map[string]any{"SizeMB": 1},
		"RestartPolicy":    map[string]any{"Attempts": 0, "Mode": "fail"},
		"ReschedulePolicy": map[string]any{"Attempts": 0, "Unlimited": false},
		"Tasks": []any{map[string]any{
			"Name": task, "Driver": "mock", "Config": config, "LogConfig": map[string]any{"MaxFiles": 1, "MaxFileSizeMB": 1},
			"Resources": map[string]any{"CPU": 1, "MemoryMB": 10},
		}},
	}
}
