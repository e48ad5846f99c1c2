package orchestrator_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

// stream reads events until the test ends.
func (c *cluster) stream(t *testing.T, index uint64) <-chan *api.Events {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	in, err := c.api.EventStream().Stream(ctx, map[api.Topic][]string{"*": {"*"}}, index, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan *api.Events, 100_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for e := range in {
			if e.Err != nil {
				return
			}
			out <- e
		}
	})
	t.Cleanup(func() { cancel(); c.stop(); wg.Wait() })
	return out
}

// describe is "Topic Type status" of an event.
func describe(t *testing.T, e *api.Event) string {
	t.Helper()
	s := fmt.Sprintf("%s %s", e.Topic, e.Type)
	switch e.Topic {
	case api.TopicJob:
		j, deleted, err := e.DeregisteredJob()
		if err != nil {
			t.Fatal(err)
		}
		if deleted {
			return s + " deleted"
		}
		return s + " " + *j.Status
	case api.TopicEvaluation:
		v, err := e.Evaluation()
		if err != nil {
			t.Fatal(err)
		}
		return s + " " + v.Status
	case api.TopicAllocation:
		a, err := e.Allocation()
		if err != nil {
			t.Fatal(err)
		}
		if a.Job != nil {
			t.Error("an allocation's event has the job")
		}
		return s + " " + a.ClientStatus + "/" + a.DesiredStatus
	}
	return s
}

func TestEventsComeInNomadsOrder(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	in := c.stream(t, 0)
	began := time.Now().UnixNano()
	c.register(job("10-a"))
	c.running("10-a", 1)
	var got []string
	last := uint64(0)
	deregistered := false
	for len(got) < 9 {
		// An evaluation that has not ended is cancelled by the purge, so its end is awaited.
		if !deregistered && slices.Contains(got, "Evaluation EvaluationUpdated complete") {
			deregistered = true
			if _, _, err := c.api.Jobs().Deregister("10-a", true, nil); err != nil {
				t.Fatal(err)
			}
		}
		e := <-in
		if e.Index <= last {
			t.Errorf("index %d after %d", e.Index, last)
		}
		last = e.Index
		for _, v := range e.Events {
			if v.Index != e.Index {
				t.Errorf("an event of index %d in the line of %d", v.Index, e.Index)
			}
			if a, err := v.Allocation(); v.Topic == api.TopicAllocation && (err != nil || a.ModifyTime < began-1000) {
				t.Errorf("its time is %d, before %d", a.ModifyTime, began)
			}
			got = append(got, describe(t, &v))
		}
	}
	// The ends of evaluations come when their answers have left; where, is not fixed.
	var rest []string
	ends := 0
	for _, g := range got {
		if g == "Evaluation EvaluationUpdated complete" {
			ends++
		} else {
			rest = append(rest, g)
		}
	}
	want := []string{
		"Job JobRegistered pending", "Evaluation JobRegistered pending",
		"Evaluation PlanResult pending", "Allocation PlanResult pending/run", "Job PlanResult running",
		"Allocation AllocationUpdated running/run",
		"Job JobDeregistered deleted", "Evaluation JobDeregistered pending",
	}
	if fmt.Sprint(rest[:min(len(rest), len(want))]) != fmt.Sprint(want) {
		t.Errorf("got  %s\nwant %s", strings.Join(rest, "\n     "), strings.Join(want, "\n     "))
	}
	if ends == 0 {
		t.Error("no evaluation ended")
	}
}

// Both rules of the stream hold while registrations come as fast as they are taken: an allocation is pending before it runs, and the end of an evaluation never overtakes
// the answer to the call that made it.
func TestTheEndOfAnEvaluationNeverOvertakesItsAnswer(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{DataDir: t.TempDir()})
	c.join(newModelNode())
	in := c.stream(t, 0)
	// As many at once as share a place in the log, and no more than even a machine that is twenty times slower answers before a request may be given up: of
	// one that was, nobody has an answer that something could overtake.
	const jobs, atOnce = 600, 64
	var mu sync.Mutex
	known := map[string]bool{}
	// What counts is that the answer has left the server: when a client among hundreds gets to read it depends on the machine.
	c.answered = func(body []byte) {
		var r struct{ EvalID string }
		if json.Unmarshal(body, &r) == nil && r.EvalID != "" {
			mu.Lock()
			known[r.EvalID] = true
			mu.Unlock()
		}
	}
	var wg sync.WaitGroup
	for first := range atOnce {
		wg.Go(func() {
			for i := first; i < jobs; i += atOnce {
				if _, _, err := c.api.Jobs().Register(job(fmt.Sprint("10-", i)), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ended := 0
	early := 0
	pending := map[string]bool{}
	for ended < jobs {
		e := <-in
		for _, v := range e.Events {
			if a, err := v.Allocation(); v.Topic == api.TopicAllocation && err == nil {
				pending[a.ID] = pending[a.ID] || a.ClientStatus == model.ClientPending
				if !pending[a.ID] {
					t.Errorf("%s is %s and was never pending", a.ID, a.ClientStatus)
				}
			}
			if v.Topic != api.TopicEvaluation || v.Type != "EvaluationUpdated" {
				continue
			}
			ev, err := v.Evaluation()
			if err != nil {
				t.Fatal(err)
			}
			if ev.Status != "complete" {
				continue
			}
			ended++
			mu.Lock()
			if !known[ev.ID] {
				early++
				t.Logf("the end number %d was early; %d answers were known", ended, len(known))
			}
			mu.Unlock()
		}
	}
	wg.Wait()
	if early > 0 {
		t.Errorf("%d of %d ends came before their answer", early, jobs)
	}
}

func TestPendingIsPublishedBeforeRunning(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	in := c.stream(t, 0)
	const jobs = 100
	var wg sync.WaitGroup
	for i := range jobs {
		wg.Go(func() { c.register(job(fmt.Sprint("10-", i))) })
	}
	pending, running := map[string]bool{}, map[string]bool{}
	for len(running) < jobs {
		for _, v := range (<-in).Events {
			if v.Topic != api.TopicAllocation {
				continue
			}
			a, err := v.Allocation()
			if err != nil {
				t.Fatal(err)
			}
			switch a.ClientStatus {
			case model.ClientPending:
				pending[a.ID] = true
			case model.ClientRunning:
				running[a.ID] = true
				if !pending[a.ID] {
					t.Errorf("%s runs and was never pending", a.ID)
				}
			}
		}
	}
	wg.Wait()
}

func TestAStreamResumesAtAnIndex(t *testing.T) {
	dir := t.TempDir()
	c := start(t, orchestrator.ServerConfig{DataDir: dir})
	c.join(newModelNode())
	first := c.register(job("10-a")).JobModifyIndex
	c.register(job("10-b"))
	in := c.stream(t, first)
	if e := <-in; e.Index != first || e.Events[0].Key != "10-a" {
		t.Errorf("it resumed with %d %s", e.Index, e.Events[0].Key)
	}
}

func TestTheFirstLineOfAStreamComesAtOnce(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, _ := http.NewRequestWithContext(ctx, "GET", c.http.URL+"/v1/event/stream?topic=Job:10-b", nil)
	resp, err := c.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); line != "{}\n" || err != nil {
		t.Errorf("the first line is %q, %v", line, err)
	}
	if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-cache" {
		t.Errorf("the headers are %v", resp.Header)
	}
	c.register(job("10-a"))
	c.register(job("10-b"))
	line, err := lines.ReadString('\n')
	var e struct {
		Index  uint64
		Events []struct {
			Topic, Key, Namespace string
			Payload               map[string]json.RawMessage
		}
	}
	if err != nil || json.Unmarshal([]byte(line), &e) != nil || len(e.Events) != 1 || e.Events[0].Key != "10-b" {
		t.Errorf("the second line is %q, %v", line, err)
	}
}

// Readers of much that has happened get all of it, each entry once and in its order, however it is cut into pieces, and whether others read it too.
func TestABacklogIsReadWhole(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	const jobs = 150
	var first uint64
	for i := range jobs {
		j := job(fmt.Sprintf("10-%03d", i))
		j.Meta = map[string]string{"long": strings.Repeat("x", 2000)}
		if index := c.register(j).JobModifyIndex; i == 0 {
			first = index
		}
	}
	var all [3][]string
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			next, leave := c.lines(t, fmt.Sprintf("/v1/event/stream?topic=Job&index=%d", first))
			defer leave()
			var before uint64
			for registered := 0; registered < jobs; {
				line := next()
				var e struct {
					Index  uint64
					Events []struct{ Type, Key string }
				}
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Errorf("%.100q: %v", line, err)
					return
				}
				if e.Events == nil {
					continue
				}
				if e.Index <= before {
					t.Errorf("entry %d comes after %d", e.Index, before)
				}
				before = e.Index
				for _, x := range e.Events {
					if x.Type == "JobRegistered" {
						registered++
						all[i] = append(all[i], x.Key)
					}
				}
			}
		})
	}
	wg.Wait()
	for i, keys := range all {
		if len(keys) != jobs || !slices.IsSorted(keys) || len(slices.Compact(slices.Clone(keys))) != jobs {
			t.Errorf("reader %d has %d registrations: %v", i, len(keys), keys)
		}
	}
}

// leaver is a reader that may not read any more after its first line.
type leaver struct {
	*httptest.ResponseRecorder
	leave context.CancelFunc
}

func (l *leaver) Flush() { l.leave() }

func TestAReaderThatMayReadNoMoreIsCutAmidABacklog(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	first := c.register(job("10-a")).JobModifyIndex
	c.register(job("10-b"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, "GET", fmt.Sprintf("/v1/event/stream?topic=Job&index=%d", first), nil)
	w := &leaver{httptest.NewRecorder(), cancel}
	c.http.Config.Handler.ServeHTTP(w, r)
	if got := w.Body.String(); got != "{}\n" {
		t.Errorf("it was sent %.200q", got)
	}
}
