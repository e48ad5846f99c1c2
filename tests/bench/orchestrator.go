package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"rockpool/tests/load"
)

// orchestrator is a server and a node in a process of their own, and the stream of what becomes of its allocations.
type orchestrator struct {
	url     string
	running <-chan ran // closed when the stream ends
	broken  error      // why it ended; set before that
	pid     int
}

// ran is a job of which an allocation runs, or has run already.
type ran struct {
	job string
	at  time.Time // it was read from the stream
}

// A throw-away agent at any free port, and one more whose tasks are entries in memory.
var (
	devAgent  = []string{"-dev", "-port", "0"}
	mockAgent = []string{"-dev", "-port", "0", "-enable-mock", "-network-range", ""}
)

// withOrchestrator starts an agent, calls f, and stops it.
func withOrchestrator(ctx context.Context, b *bench, f func(*orchestrator) error, args ...string) error {
	cmd := exec.Command(b.orchestrator, append([]string{"agent"}, args...)...)
	errs, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(errs)
	o := &orchestrator{pid: cmd.Process.Pid}
	var said strings.Builder
	for o.url == "" && lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if _, after, ok := strings.Cut(lines.Text(), "http://"); ok {
			o.url = "http://" + strings.FieldsFunc(after, func(r rune) bool { return strings.ContainsRune(" \"", r) })[0]
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
	if o.url == "" {
		return fmt.Errorf("the orchestrator did not say where it listens:\n%s", said.String())
	}
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(sctx, http.MethodGet, o.url+"/v1/event/stream?topic=Allocation", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	running := make(chan ran, 1<<16)
	o.running = running
	go func() {
		defer close(running)
		o.broken = readRunning(resp.Body, running)
	}()
	return f(o)
}

// readRunning tells each job once.
func readRunning(stream io.Reader, running chan<- ran) error {
	seen := map[string]bool{}
	return load.Running(stream, func(job string) {
		if !seen[job] {
			seen[job] = true
			running <- ran{job, time.Now()}
		}
	})
}

func (o *orchestrator) ended() error {
	return errors.Join(errors.New("the event stream ended"), o.broken)
}

// registerToRunning measures the orchestrator alone: from sending a job to the event that its allocation runs.
func registerToRunning(ctx context.Context, b *bench) error {
	return withOrchestrator(ctx, b, func(o *orchestrator) error { return b.oneByOne(ctx, o) }, devAgent...)
}

func (b *bench) oneByOne(ctx context.Context, o *orchestrator) error {
	var calls load.Samples
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
		if err := send(ctx, http.MethodPut, o.url+"/v1/jobs", job); err != nil {
			return err
		}
		select {
		case got, ok := <-o.running:
			if !ok {
				return o.ended()
			}
			if got.job != id {
				return fmt.Errorf("waited for %s, got %q", id, got.job)
			}
			calls.Add(load.Sample{End: got.at, Took: got.at.Sub(start)})
		case <-time.After(10 * time.Second):
			return fmt.Errorf("job %s does not run after 10 s", id)
		}
		if err := send(ctx, http.MethodDelete, o.url+"/v1/job/"+id+"?purge=true", nil); err != nil {
			return err
		}
	}
	return b.addCalls("RegisterToRunning", begin, &calls)
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
