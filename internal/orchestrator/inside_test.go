package orchestrator_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
)

// What a program in the agent's process is handed says what a connection would say, event for event.
func TestChangesAreTheEventsOfTheStream(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a node needs root")
	}
	a, _ := runs(t, orchestrator.AgentConfig{DataDir: t.TempDir(), Address: "127.0.0.1:0", RemoveOnStop: true, MockDriver: true})
	changes, err := a.Changes("")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL()+"/v1/event/stream?topic=Job&topic=Evaluation&topic=Allocation", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := a.Transport().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	c, err := api.NewClient(&api.Config{Address: a.URL(), HttpClient: &http.Client{Transport: a.Transport()}})
	if err != nil {
		t.Fatal(err)
	}
	job := api.NewBatchJob("seen", "seen", "global", 50).AddDatacenter("*").AddTaskGroup(api.NewTaskGroup("group", 1).AddTask(
		api.NewTask("task", "mock").SetConfig("run_for", "1h")))
	if _, _, err := c.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for over := false; !over; {
		index, list, err := changes.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var line struct {
			Index  uint64
			Events []struct {
				Topic, Type, Key string
				Payload          map[string]json.RawMessage
			}
		}
		for line.Index == 0 && lines.Scan() { // a line without one is a sign of life
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
		}
		if line.Index != index || len(line.Events) != len(list) {
			t.Fatalf("index %d with %d changes, in the stream %d with %d: %v", index, len(list), line.Index, len(line.Events), lines.Err())
		}
		for i, e := range line.Events {
			ch := list[i]
			if ch.Topic != e.Topic || ch.Type != e.Type || ch.Key != e.Key {
				t.Errorf("%s %s %s, in the stream %s %s %s", ch.Topic, ch.Type, ch.Key, e.Topic, e.Type, e.Key)
			}
			sent := reflect.New(reflect.TypeOf(ch.Object()))
			if err := json.Unmarshal(e.Payload[e.Topic], sent.Interface()); err != nil {
				t.Fatal(err)
			}
			want, err := json.Marshal(sent.Elem().Interface())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := json.Marshal(ch.Object()); err != nil || string(got) != string(want) {
				t.Errorf("%s %s\n%s\nin the stream\n%s\n%v", ch.Topic, ch.Type, got, want, err)
			}
			if a, ok := ch.Object().(*api.Allocation); ok && a.ClientStatus == api.AllocClientStatusRunning {
				if _, _, err := c.Jobs().Deregister("seen", true, nil); err != nil {
					t.Fatal(err)
				}
			}
			over = over || ch.Type == "JobDeregistered" && ch.Topic == "Job"
		}
	}
}
