package timeline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"rockpool/internal/timeline"
	"rockpool/internal/timeline/timelinetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func recorder(t testing.TB, o timeline.Options) *timeline.Recorder {
	t.Helper()
	if o.Ratio == 0 {
		o.Ratio = 1
	}
	r, err := timeline.New(o)
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	return r
}

func TestWithoutAnywhereToGoNothingIsRecorded(t *testing.T) {
	for name, o := range map[string]timeline.Options{
		"nobody keeps it": {Ratio: 1}, "the ratio is 0": {Keep: 10, Collector: timeline.Collector{Endpoint: "http://127.0.0.1:1"}},
	} {
		r, err := timeline.New(o)
		if r != nil || err != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	var off *timeline.Recorder
	ctx, span := timeline.Start(t.Context(), timeline.ClaimTake)
	if ctx != t.Context() || span != nil || off.Stranger(parent) != nil || off.Partner(parent) != nil || off.Start("a") != nil || off.Runner("a") != nil ||
		off.OfJob("", "a", timeline.TaskStart) != nil || len(off.Find(timeline.Query{Limit: 5})) != 0 {
		t.Error("a recorder that is off has recorded something")
	}
}

// All that runs on the paths of requests, with nothing to record.
func TestOffAllocatesNothing(t *testing.T) {
	ctx, err := t.Context(), errors.New("x")
	told := ""
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := timeline.Start(ctx, timeline.ClaimTake)
		lap := span.Laps()
		lap.Done(timeline.ExecGroup)
		span.Text(timeline.RunnerID, "10-x")
		span.Number(timeline.Status, 200)
		span.Fail(err)
		span.About("10-x")
		span.Import("5", time.Time{})
		span.Child(timeline.ClusterCall).End()
		span.Top().After(timeline.RunnerIdle)
		timeline.From(ctx).Above().Past(timeline.LogApply, time.Time{}, time.Time{})
		told += span.Traceparent() + span.Steps()
		span.Discard()
		span.End()
	}); n != 0 || told != "" {
		t.Errorf("%v allocations, and it told %q", n, told)
	}
}

func BenchmarkOff(b *testing.B) {
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, span := timeline.Start(ctx, timeline.ClaimTake)
		span.Text(timeline.RunnerID, "10-x")
		span.End()
	}
}

func TestOnlyWellFormedTraceparentsAreTaken(t *testing.T) {
	for h, want := range map[string]bool{
		parent: true, strings.Replace(parent, "00-", "cc-", 1) + "-more": true, strings.TrimSuffix(parent, "1") + "0": true,
		"": false, "00": false, parent + "-more": false, parent + "x": false, strings.ToUpper(parent): false, strings.Replace(parent, "00-", "ff-", 1): false,
		"00-00000000000000000000000000000000-b7ad6b7169203331-01": false, "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01": false,
		"00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01": false, "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01": false,
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-" + strings.Repeat("x", 1<<20): false,
	} {
		if _, ok := timeline.ParseTraceparent(h); ok != want {
			t.Errorf("%.80q: %v", h, ok)
		}
	}
	ref, _ := timeline.ParseTraceparent(parent)
	if ref.String() != parent {
		t.Errorf("it comes back as %q", ref)
	}
}

func TestAStrangerDoesNotDecideWhatIsRecorded(t *testing.T) {
	r := recorder(t, timeline.Options{Keep: 4096, Ratio: 0.1})
	n := 0
	for range 1000 {
		if s := r.Stranger(parent); s != nil {
			n++
			if s.Ref().Trace.String() != parent[3:35] {
				t.Fatal("the trace is not the caller's")
			}
			s.End()
		}
	}
	if n < 40 || n > 200 {
		t.Errorf("%d of 1000 were recorded at a ratio of 0.1", n)
	}
	if r.Partner(strings.TrimSuffix(parent, "1")+"0") != nil || r.Partner("") != nil || r.Partner("nonsense") != nil {
		t.Error("it was recorded although the caller does not")
	}
}

func TestEveryProcessDecidesTheSameAboutAJob(t *testing.T) {
	a, b := recorder(t, timeline.Options{Keep: 4096, Ratio: 0.5, Namespace: "default"}), recorder(t, timeline.Options{Tell: true, Ratio: 0.5})
	n := 0
	for i := range 500 {
		id := fmt.Sprint("10-", i)
		x, y := a.Start(id), b.OfJob("", id, timeline.TaskStart)
		if (x == nil) != (y == nil) {
			t.Fatalf("%s: the two disagree", id)
		}
		if x != nil {
			n++
			if x.Ref().Trace != y.Ref().Trace || a.Runner(id) != x {
				t.Fatalf("%s: the traces differ, or it is not found", id)
			}
			x.End()
			y.End()
		}
	}
	if n < 150 || n > 350 {
		t.Errorf("%d of 500 at a ratio of 0.5", n)
	}
}

// A cluster that is asked for its steps may lie: nothing that it says leaves the call that it belongs to, and there is no more of it than there may be.
func TestWhatAnotherProcessTellsStaysWithinItsCall(t *testing.T) {
	check := func(t interface{ Fatalf(string, ...any) }, told string) {
		r := recorder(&testing.T{}, timeline.Options{Keep: 1})
		s := r.Partner(parent)
		c := s.Child(timeline.ClusterCall)
		c.Import(told, time.Time{})
		c.End()
		s.End()
		v := r.Find(timeline.Query{Limit: 1})[0]
		call := v.Steps[1]
		if len(v.Steps) > 70 {
			t.Fatalf("%d steps", len(v.Steps))
		}
		for _, step := range v.Steps[2:] {
			if step.Start < call.Start || step.Duration < 0 || step.Start+step.Duration > call.Start+call.Duration || !step.Elsewhere {
				t.Fatalf("%q: %+v lies outside of %+v", told, step, call)
			}
		}
	}
	for _, told := range []string{
		"", "x", "5", "5,log.apply:0:0:5", "5,log.apply:0:0:99999999999,log.append:1:0:1", "5,log.apply:7:0:1", "5,nonsense:0:0:1", "5,log.apply:0:-1:1", "5,log.apply:0:1",
		"18446744073709551615,log.apply:0:1:1", strings.Repeat("log.apply:0:0:1,", 5000), "5" + strings.Repeat(",log.apply:0:0:1", 200), "\x00\xff,\n",
		"5" + func() (b string) {
			for i := range 60 {
				b += fmt.Sprintf(",log.apply:%d:0:1", i)
			}
			return b
		}(),
	} {
		check(t, told)
	}
	rapid.Check(t, func(t *rapid.T) {
		steps := rapid.SliceOfN(rapid.StringMatching(`(log\.apply|request|x)(:-?[0-9]{1,13}){2,4}|(log\.apply|request):[0-3]:[0-9]{1,5}:[0-9]{1,5}`), 0, 80).Draw(t, "steps")
		check(t, strings.Join(append([]string{rapid.StringMatching(`[0-9]{0,12}`).Draw(t, "took")}, steps...), ","))
	})
}

// A supervisor that is in a tenant's hands may say any length.
func TestWhatIsOverLiesWithinItsParent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := recorder(&testing.T{}, timeline.Options{Keep: 1})
		s := r.Partner(parent)
		c := s.Child(timeline.ExecRequest)
		if rapid.Bool().Draw(t, "ended") {
			c.End()
		}
		at := time.Now().Add(time.Duration(rapid.Int64Range(-1<<55, 1<<55).Draw(t, "begun")))
		c.Past(timeline.ExecFork, at, at.Add(time.Duration(rapid.Int64Range(-1<<55, 1<<55).Draw(t, "length"))))
		c.End()
		s.End()
		steps := r.Find(timeline.Query{Limit: 1})[0].Steps
		request, fork := steps[1], steps[2]
		if fork.Start < request.Start || fork.Duration < 0 || fork.Start+fork.Duration > request.Start+request.Duration {
			t.Fatalf("%+v lies outside of %+v", fork, request)
		}
	})
}

func TestStepsAreToldAndTakenIn(t *testing.T) {
	there, here := recorder(t, timeline.Options{Tell: true}), recorder(t, timeline.Options{Keep: 1})
	s := here.Partner(parent)
	call := s.Child(timeline.ClusterCall)
	answer := there.Partner(call.Traceparent())
	if answer.Ref().Trace != s.Ref().Trace {
		t.Fatal("the trace was lost on the way")
	}
	entry := answer.Child(timeline.NodeRelay)
	entry.Child(timeline.NodeExec).End()
	entry.End()
	call.Import(answer.Steps(), time.Now())
	call.End()
	s.End()
	var got []string
	for _, row := range here.Find(timeline.Query{Limit: 1})[0].Steps {
		got = append(got, fmt.Sprintf("%d %s %v", row.Depth, row.Step, row.Elsewhere))
	}
	if want := "0 request false, 1 cluster.call false, 2 node.relay true, 3 node.exec true"; strings.Join(got, ", ") != want {
		t.Errorf("got %q", got)
	}
}

func TestNothingGrows(t *testing.T) {
	dropped := 0
	r := recorder(t, timeline.Options{Keep: 3, Count: func(result string, n int) { dropped += n }})
	s := r.Partner(parent)
	for range 1000 {
		s.Child(timeline.LogApply).End()
	}
	s.Text(timeline.RunnerID, strings.Repeat("a", 1<<20)+"\x1b[31m")
	for i := range 100 {
		s.Number(timeline.Status, int64(i))
	}
	v := r.Find(timeline.Query{Limit: 1})[0]
	if len(v.Steps) > 96 || len(v.Runner) > 64 || dropped != v.Dropped || dropped == 0 || len(v.Steps[0].Tags) > 6 {
		t.Errorf("%d steps, %d bytes of an id, %d dropped", len(v.Steps), len(v.Runner), v.Dropped)
	}
	for range 10 {
		r.Partner(parent).End()
	}
	if n := len(r.Find(timeline.Query{Limit: 100})); n != 3 {
		t.Errorf("%d are kept, not 3", n)
	}
	if n := len(r.Find(timeline.Query{Limit: 2})); n != 2 {
		t.Errorf("%d are shown, not 2", n)
	}
	granted := 0
	for range 10_000 {
		if r.Partner(parent) != nil {
			granted++
		}
	}
	if granted > 4100 { // two seconds' worth: the clock may turn in between
		t.Errorf("a caller had %d traces begun at once", granted)
	}
}

func TestOnlyWordsOfOursAreKept(t *testing.T) {
	r := recorder(t, timeline.Options{Keep: 1})
	s := r.Partner(parent)
	s.Text(timeline.ExecutionID, "a b;$(rm -rf)\n\"é<script>")
	s.End()
	if got := r.Find(timeline.Query{Limit: 1})[0].Execution; got != "abrm-rfscript" {
		t.Errorf("%q", got)
	}
}

func TestACallerWhoIsNotLetInLeavesNothing(t *testing.T) {
	c := timelinetest.New(t)
	r := recorder(t, timeline.Options{Keep: 5, Collector: timeline.Collector{Endpoint: c.URL}})
	s := r.Stranger("")
	s.Child(timeline.ClaimTake)
	s.Discard()
	s.Child(timeline.ClaimMark).End()
	s.End()
	run(t, r, func() {})
	if len(r.Find(timeline.Query{Limit: 5})) != 0 || len(c.Spans()) != 0 {
		t.Error("something of it is kept")
	}
}

// run has a recorder send what there is.
func run(t *testing.T, r *timeline.Recorder, f func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	f()
	stop()
	wg.Wait()
}

func TestSpansGoToTheCollector(t *testing.T) {
	c := timelinetest.New(t)
	var mu sync.Mutex
	count := map[string]int{}
	r := recorder(t, timeline.Options{Service: "rockpool-gateway", Version: "1", Resource: map[string]string{"host.name": "a b", "service.version": "2"}, Keep: 1,
		Collector: timeline.Collector{Endpoint: c.URL, Headers: map[string]string{"Authorization": "Bearer secret"}},
		Count:     func(result string, n int) { mu.Lock(); count[result] += n; mu.Unlock() }})
	run(t, r, func() {
		s := r.Stranger(parent)
		s.About("10-x")
		s.Number(timeline.Status, 200)
		child := s.Child(timeline.ClusterCall)
		child.Import("3,log.apply:0:0:3", time.Time{}) // its own process sends it
		child.Fail(errors.New("secret words"))
		child.End()
		s.End()
		s.End()
	})
	spans := c.Spans()
	if len(spans) != 2 || count["sent"] != 2 || count["dropped"]+count["refused"] != 0 {
		t.Fatalf("%+v, %v", spans, count)
	}
	call, request := spans[0], spans[1]
	trace, _ := timeline.OfJob("", "10-x")
	if request.Trace != parent[3:35] || request.Parent != parent[36:52] || call.Parent != request.ID || call.Trace != request.Trace || request.Service != "rockpool-gateway" || request.Resource["service.version"] != "1" || request.Resource["host.name"] != "a b" ||
		request.Number["http.response.status_code"] != 200 || request.Text["rockpool.runner_id"] != "10-x" || len(request.Links) != 1 || request.Links[0] != trace.String() ||
		call.Begun.Before(request.Begun) || call.Ended.After(request.Ended) {
		t.Errorf("%+v", spans)
	}
	if c.Headers()[0].Get("Authorization") != "Bearer secret" || bytes.Contains(c.Bodies()[0], []byte("secret")) {
		t.Error("the header is missing, or words of an error left the process")
	}
}

// attack: a collector that is gone, hangs, redirects, refuses or never stops answering.
func TestABrokenCollectorHoldsNobodyUp(t *testing.T) {
	release := make(chan struct{})
	stolen := timelinetest.New(t)
	for name, h := range map[string]http.HandlerFunc{
		"hangs": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		},
		"refuses": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400) },
		"is overloaded": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(503)
		},
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, stolen.URL+"/v1/traces", http.StatusTemporaryRedirect)
		},
		"answers for ever":   func(w http.ResponseWriter, r *http.Request) { _, _ = io.CopyN(w, zeros{}, 1<<30) },
		"breaks connections": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // or nobody would notice that the client has gone
				h(w, r)
			}))
			defer s.Close()
			defer s.CloseClientConnections()
			var mu sync.Mutex
			count := map[string]int{}
			r := recorder(t, timeline.Options{Collector: timeline.Collector{Endpoint: s.URL, Timeout: 200 * time.Millisecond, Headers: map[string]string{"Authorization": "secret"}},
				Count: func(result string, n int) { mu.Lock(); count[result] += n; mu.Unlock() }})
			var longest time.Duration
			run(t, r, func() {
				for range 1500 {
					begun := time.Now()
					s := r.Partner(parent)
					for range 5 {
						s.Child(timeline.LogApply).End()
					}
					s.End()
					longest = max(longest, time.Since(begun))
				}
			})
			mu.Lock()
			defer mu.Unlock()
			if longest > 2*time.Second || count["dropped"]+count["refused"]+count["sent"] != 1500*6 || count["dropped"] < 1500*6-4096-1024 && count["dropped"] == 0 {
				t.Errorf("a request took %v, and of 9000 spans it was told %v", longest, count)
			}
			if name != "answers for ever" && count["sent"] != 0 {
				t.Errorf("%d are said to be sent", count["sent"])
			}
		})
	}
	close(release)
	if len(stolen.Headers()) != 0 {
		t.Error("spans and headers went where the collector pointed")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestBadCollectorsAreRefused(t *testing.T) {
	for _, c := range []timeline.Collector{
		{Endpoint: "localhost:4318"}, {Endpoint: "ftp://x"}, {Endpoint: "http://"}, {Endpoint: "http://user:secret@x"}, {Endpoint: "http://x?secret"},
		{Endpoint: "http://x", Headers: map[string]string{"a\n": "secret"}}, {Endpoint: "http://x", Headers: map[string]string{"a": "secret\r\nb: c"}},
		{Endpoint: "http://x", Timeout: time.Hour}, {Endpoint: "http://x", CAFile: "/nonexistent"},
	} {
		_, err := timeline.New(timeline.Options{Ratio: 1, Collector: c})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestStandardVariablesStandInOrAreRefused(t *testing.T) {
	o := timeline.Options{Ratio: 1}
	got, err := o.Environ([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://a:1/", "OTEL_EXPORTER_OTLP_HEADERS=x=a%20b,y=c", "OTEL_EXPORTER_OTLP_TIMEOUT=1500", "OTEL_SERVICE_NAME=mine",
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_RESOURCE_ATTRIBUTES=a=b%2Cc,service.name=yours", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://m", "HOME=/", "OTEL_BSP_SCHEDULE_DELAY="})
	if err != nil || got.Endpoint != "http://a:1/v1/traces" || got.Headers["x"] != "a b" || got.Headers["y"] != "c" || got.Timeout != 1500*time.Millisecond || got.Service != "mine" || got.Resource["a"] != "b,c" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = o.Environ([]string{"OTEL_RESOURCE_ATTRIBUTES= service.name = yours ,b= c,"}); err != nil || got.Service != "yours" || got.Resource["b"] != "c" {
		t.Errorf("a service's name among the attributes: %+v, %v", got, err)
	}
	got, err = o.Environ([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://b:1/x"})
	if err != nil || got.Endpoint != "http://b:1/x" {
		t.Errorf("the special one does not win: %+v, %v", got, err)
	}
	o.Endpoint, o.Headers = "http://mine", map[string]string{"a": "b"}
	got, err = o.Environ([]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://b:1/x", "OTEL_EXPORTER_OTLP_HEADERS=x=y"})
	if err != nil || got.Endpoint != "http://mine" || len(got.Headers) != 1 || got.Headers["a"] != "b" {
		t.Errorf("the configuration does not win: %+v, %v", got, err)
	}
	if got, err = o.Environ([]string{"OTEL_SDK_DISABLED=true"}); err != nil || got.Ratio != 0 {
		t.Errorf("it is not off: %+v, %v", got, err)
	}
	for _, v := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_TRACES_SAMPLER=always_on", "OTEL_BSP_MAX_QUEUE_SIZE=1", "OTEL_EXPORTER_OTLP_CLIENT_KEY=/secret",
		"OTEL_EXPORTER_OTLP_TIMEOUT=secret", "OTEL_EXPORTER_OTLP_HEADERS=secret", "OTEL_RESOURCE_ATTRIBUTES=secret", "OTEL_RESOURCE_ATTRIBUTES=a=%zzsecret", "OTEL_RESOURCE_ATTRIBUTES=%00secret,a=b", "OTEL_RESOURCE_ATTRIBUTES=a=%ffsecret", "OTEL_TRACES_EXPORTER=zipkin", "OTEL_PROPAGATORS=b3"} {
		name, _, _ := strings.Cut(v, "=")
		if _, err := (timeline.Options{Ratio: 1}).Environ([]string{v}); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", v, err)
		}
	}
}

// A node in the same process tells the steps of a start, once it is over.
func TestAStartIsShownByWhoKeepsIt(t *testing.T) {
	keeper := recorder(t, timeline.Options{Keep: 2})
	node := recorder(t, timeline.Options{Tell: true})
	node.ShowIn(keeper)
	top := keeper.Start("10-x")
	task := node.OfJob("", "10-x", timeline.TaskStart)
	create := task.Child(timeline.TaskCreate)
	create.Child(timeline.SandboxSetup) // never ends
	create.End()
	if shown := keeper.Find(timeline.Query{Runner: "10-x", Limit: 1}); len(shown) != 1 || len(shown[0].Steps) != 1 {
		t.Errorf("before it is over: %+v", shown)
	}
	task.End()
	node.OfJob("", "10-unknown", timeline.TaskStart).End()
	node.Partner(top.Traceparent()).End()
	top.End()
	shown := keeper.Find(timeline.Query{Runner: "10-x", Limit: 2})
	if len(shown) != 1 {
		t.Fatalf("%+v", shown)
	}
	var got []string
	for _, s := range shown[0].Steps {
		got = append(got, fmt.Sprintf("%d%s %t", s.Depth, s.Step, s.Elsewhere))
	}
	if want := []string{"0runner false", "1task.start true", "2task.create true"}; !slices.Equal(got, want) {
		t.Errorf("shown are %q, want %q", got, want)
	}
	for range 10 { // a task that starts over and over
		again := node.OfJob("", "10-x", timeline.TaskStart)
		for range 20 {
			again.Child(timeline.TaskCreate).End()
		}
		again.End()
	}
	if shown = keeper.Find(timeline.Query{Runner: "10-x", Limit: 1}); len(shown[0].Steps) != 96 || shown[0].Dropped != 3+210-96 {
		t.Errorf("%d steps are kept, %d dropped", len(shown[0].Steps), shown[0].Dropped)
	}
}

func TestATimelineIsPrinted(t *testing.T) {
	v := timeline.Timeline{Trace: "t", Runner: "r", Execution: "e", Begun: time.Unix(0, 0), Dropped: 2, Steps: []timeline.Row{
		{Step: "request", Duration: 4 * time.Millisecond, Tags: map[string]string{"rockpool.route": "/execute"}},
		{Step: "log.append", Depth: 1, Start: time.Millisecond, Duration: 2 * time.Millisecond, Elsewhere: true, Failed: true},
		{Step: "node.run", Depth: 1, Start: 3 * time.Millisecond, Duration: -1},
	}}
	var b bytes.Buffer
	if err := v.Print(&b); err != nil {
		t.Fatal(err)
	}
	want := `trace t  runner r  execution e
1970-01-01T00:00:00.000000Z, 4.000 ms in all
    at ms   took ms
    0.000     4.000  ========================================  request /execute
    1.000     2.000            --------------------              log.append (failed)
    3.000   goes on                                ==========    node.run
2 more steps were not kept
`
	if b.String() != want {
		t.Errorf("got\n%s", b.String())
	}
	if err := (timeline.Timeline{}).Print(&b); err != nil {
		t.Error(err)
	}
}
