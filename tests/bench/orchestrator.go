package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// registerToRunning measures the orchestrator alone: from sending a job to the event that its allocation runs.
func registerToRunning(ctx context.Context, b *bench) error {
	cmd := exec.Command(b.orchestrator, "agent", "-dev", "-port", "0")
	errs, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(errs)
	url := ""
	for url == "" && lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "http://"); ok {
			url = "http://" + strings.FieldsFunc(after, func(r rune) bool { return strings.ContainsRune(" \"", r) })[0]
		}
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for lines.Scan() {
		}
	}()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		<-drained
		_ = cmd.Wait()
	}()
	if url == "" {
		return errors.New("the orchestrator did not say where it listens")
	}

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/event/stream?topic=Allocation", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	running := make(chan string, 64)
	go func() {
		defer close(running)
		d := json.NewDecoder(resp.Body)
		seen := map[string]bool{}
		for {
			var frame struct {
				Events []struct {
					Payload struct {
						Allocation struct{ JobID, ClientStatus string }
					}
				}
			}
			if d.Decode(&frame) != nil {
				return
			}
			for _, e := range frame.Events {
				if a := e.Payload.Allocation; a.ClientStatus == "running" && !seen[a.JobID] {
					seen[a.JobID] = true
					running <- a.JobID
				}
			}
		}
	}()

	f := figure{name: "register to running, orchestrator alone", budget: 20 * time.Millisecond}
	begin := time.Now()
	for i := range b.n {
		id := fmt.Sprintf("bench-%d", i)
		job := map[string]any{"Job": map[string]any{
			"ID": id, "Name": id, "Type": "batch", "Datacenters": []string{"dc1"},
			"TaskGroups": []any{map[string]any{"Name": "g", "Count": 1, "Tasks": []any{map[string]any{
				"Name": "t", "Driver": "docker", "Config": map[string]any{"image": "host", "command": "sleep", "args": []string{"infinity"}},
				"Resources": map[string]any{"CPU": 20, "MemoryMB": 32},
			}}}},
		}}
		start := time.Now()
		if err := send(ctx, http.MethodPut, url+"/v1/jobs", job); err != nil {
			return err
		}
		select {
		case got, ok := <-running:
			if !ok || got != id {
				return fmt.Errorf("waited for %s, got %q", id, got)
			}
		case <-time.After(10 * time.Second):
			return fmt.Errorf("job %s does not run after 10 s", id)
		}
		f.samples = append(f.samples, time.Since(start))
		if err := send(ctx, http.MethodDelete, url+"/v1/job/"+id+"?purge=true", nil); err != nil {
			return err
		}
	}
	f.rate = float64(b.n) / time.Since(begin).Seconds()
	b.add(f)
	return nil
}

func send(ctx context.Context, method, url string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %d %s", method, url, resp.StatusCode, text.String())
	}
	return nil
}
