package hostile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// silent is the output of a program that found nothing to print.
const silent = `()`

// attack is one row of the table.
type attack struct {
	id, what string
	language string // sh, py or c
	program  string
	env      map[string]string
	root     bool // as root of the runner
	limit    int  // time limit in seconds; 0 = 20
	network  bool // from a runner with network access
	// script takes the place of a program, or runs beside it when there is one.
	script func(ctx context.Context, a *arena, runner string) error
	// then looks at the runner after the program.
	then   func(ctx context.Context, a *arena, runner string) error
	want   string // the verdict, a regular expression for the whole of it; empty for scripts, which judge themselves
	stdout string // a regular expression for the whole output; empty = anything, silent = nothing
	only   string // architecture; empty = all
	// missing is the precondition that no machine meets yet: the row is there to say so.
	missing string
}

var attacks = slices.Concat(resources, fileSystem, kernel, network, connectedAttacks, tenants, terminals, verdicts, requests, images, untried)

// untried are the cases of the checklist that attack what is not there, or cannot be attacked from here.
var untried = []attack{
	{id: "D7", what: "a server inside that answers a proxy of ours", missing: "there is no proxy: clients reach exposed ports themselves. What a node answers through a server is tried in internal/orchestrator/link: TestAnAnswerOfANodeSpeaksForTheNodeAlone"},
	{id: "G7", what: "the node's clock jumps", missing: "the clock is not this suite's to set; wall time is monotonic"},
	{id: "H9", what: "garbage, old terms and forged members for Raft", missing: "one server has no peers, and no port for them; tried in internal/orchestrator: TestRaftStandsGarbage, TestAForgedMemberGetsNoVote, TestStrangersAtTheServersPort"},
	{id: "H10", what: "a join token, replayed", missing: "the only node here is the service's own; tried in internal/orchestrator: TestANodeIsIntroduced"},
	{id: "H11", what: "a panic in a handler", missing: "no request is known that makes one; tested in internal/endpoint"},
	{id: "I1", what: "memory of a GPU that another tenant used", missing: "it takes a GPU; on a machine that has one it is tried in tests/e2e: TestOnHardwareMemoryOfATenantIsNotReadable"},
	{id: "I2", what: "all memory of a GPU, or a kernel for ever", missing: "it takes a GPU; who holds a whole one or a MIG instance has it alone, and slots do not promise to keep others out"},
	{id: "I3", what: "devices and controls of other GPUs", missing: "it takes a GPU; tried with other devices of the kernel in internal/sandbox: TestOtherDevicesCannotBeReached, and in tests/e2e: TestRunnersOnGPUs"},
	{id: "I4", what: "a neighbour's MPS socket", missing: "no server of MPS is ever shown inside: sockets of a specification are not (internal/orchestrator/driver/cdi: TestSocketsAndFileSystemsAreNotShown)"},
	{id: "I5", what: "handles of memory across tenants", missing: "it takes a GPU that two tenants share"},
	{id: "I6", what: "a GPU where there is none", missing: "tried in tests/e2e: TestRunnersOnGPUs"},
}

// Environments of the arena.
const (
	attackers  = 10
	neighbours = 11
	connected  = 20 // with network access
	poolSize   = 2
	memoryMB   = 128
)

// Bounds that hold for every case. The goal for the echo is goalEcho; the machine that tests run on may be shared, so the assertion is looser.
const (
	goalEcho    = 50 * time.Millisecond
	boundEcho   = 500 * time.Millisecond
	boundMemory = 256 << 20        // growth of the service's resident size
	boundClean  = 15 * time.Second // a name service that does not answer is given 10
)

// patience stretches the bounds on a machine that is slow, such as an emulated one.
var patience = func() time.Duration {
	n, _ := strconv.Atoi(os.Getenv("HOSTILE_PATIENCE"))
	return time.Duration(max(n, 1))
}()

// chosen are the cases for this machine, or those of them that HOSTILE names by id or by the letter of their category.
func chosen() []attack {
	var cases []attack
	names := strings.FieldsFunc(os.Getenv("HOSTILE"), func(r rune) bool { return r == ' ' || r == ',' })
	for _, k := range attacks {
		named := len(names) == 0 || slices.Contains(names, k.id) || slices.Contains(names, k.id[:1])
		if named && (k.only == "" || k.only == runtime.GOARCH) {
			cases = append(cases, k)
		}
	}
	return cases
}

type arena struct {
	*service.Service
	token    string
	binary   string
	secret   string // what is in the canary
	canaries string // directory of the node with files that nobody may read or touch
	ports    string // of the service, for programs
	log      *service.Log
	data     string // the service's data directory
	registry *registryServer
	world    *outside
	offline  error // why there are no runners with network access
	quiet    service.Holdings
	echo     *neighbour
}

type row struct {
	attack
	verdict   string
	err       error
	echo      echoTimes
	grown     int64
	took      time.Duration
	clean     time.Duration
	tried     bool // false: a precondition is missing, and the verdict says which
	contained bool
}

func TestHostile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute*patience)
	defer cancel()
	log := &service.Log{}
	a, stop := enter(ctx, t, log)
	defer stop()
	var rows []row
	for _, k := range chosen() {
		r := a.face(ctx, k)
		rows = append(rows, r)
		if r.err != nil {
			t.Errorf("%s %s: %v", k.id, k.what, r.err)
		}
		if ctx.Err() != nil {
			t.Fatal("the service's log:\n" + log.Tail(logTail))
		}
	}
	if now, err := a.Settled(ctx); err != nil || now != a.quiet {
		t.Errorf("in the end there are %+v, at first there were %+v (%v)", now, a.quiet, err)
	}
	t.Log("\n" + table(rows))
	for _, k := range untried {
		t.Logf("%s %s: not tried: %s", k.id, k.what, k.missing)
	}
	if a.offline != nil {
		t.Logf("there were no runners with network access: %v", a.offline)
	}
	a.echo.leave()
	if log.Has("panic") {
		t.Error("the service's log speaks of a panic")
	}
	if t.Failed() {
		t.Logf("the end of the service's log:\n%s", log.Tail(logTail))
	}
}

// enter starts the service with a full pool and a neighbour.
func enter(ctx context.Context, t *testing.T, log *service.Log) (*arena, func()) {
	dir := t.TempDir()
	bin, err := service.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	a := &arena{token: "hostile-" + rand.Text(), binary: bin, secret: rand.Text(), canaries: t.TempDir(), log: log, data: filepath.Join(dir, "data"), registry: newRegistry()}
	t.Cleanup(a.registry.Close)
	if a.world, a.offline = makeWorld(); a.offline == nil {
		t.Cleanup(a.world.close)
	}
	for _, name := range []string{"file", "dir/inner"} {
		path := filepath.Join(a.canaries, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(a.secret), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	orchestrator, err := service.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	a.Service, err = service.Start(ctx, service.Options{
		Binary: bin, Dir: a.data, Token: a.token, Log: log,
		Env: []string{"ROCKPOOL_SERVER_CLAIMWAIT=10", "ROCKPOOL_ORCHESTRATOR_IMAGES_PLAINHTTP=" + a.registry.host(), fmt.Sprintf("ROCKPOOL_ORCHESTRATOR_PORT=%d", orchestrator)},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.Tail(logTail))
	}
	a.ports = fmt.Sprint(a.Port, " ", orchestrator)
	stopWatch := a.watchSandboxes()
	stop := func() {
		stopWatch()
		if err := a.Stop(); err != nil {
			t.Errorf("%v\n%s", err, log.Tail(logTail))
		}
	}
	environment := platform.Environment{CPULimit: 100, MemoryLimit: memoryMB, Image: "host"}
	for id, size := range map[int]uint{attackers: poolSize, neighbours: 1} {
		environment.PrewarmingPoolSize = size
		if err = a.PutEnvironment(ctx, id, environment); err != nil {
			break
		}
	}
	if a.offline == nil {
		environment.PrewarmingPoolSize, environment.NetworkAccess, environment.ExposedPorts = poolSize, true, []uint16{8080}
		a.offline = a.PutEnvironment(ctx, connected, environment)
	}
	if err == nil {
		a.echo, err = moveIn(ctx, a.Service)
	}
	if err == nil {
		err = a.poolsFull(ctx)
	}
	if err == nil {
		a.quiet, err = a.Settled(ctx)
	}
	if err != nil {
		stop()
		t.Fatalf("%v\n%s", err, log.Tail(logTail))
	}
	return a, stop
}

// watchSandboxes notes every sandbox while it lives, as its control groups are found by its name.
func (a *arena) watchSandboxes() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_ = a.Observe()
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// face runs one case from a fresh runner to a clean node.
func (a *arena) face(ctx context.Context, k attack) (r row) {
	r = row{attack: k}
	if k.missing != "" || k.network && a.offline != nil {
		r.verdict = "not tried" // the end of the table says why
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second*patience)
	defer cancel()
	env := attackers
	if k.network {
		env = connected
	}
	runner, err := a.Claim(ctx, env, 5*time.Minute)
	if err != nil {
		r.err = fmt.Errorf("the service gives no runner: %w", err)
		return r
	}
	before, _, memErr := a.Memory()
	r.err = errors.Join(memErr, a.ResetPeak())
	window := a.echo.begin()
	start := time.Now()
	if k.program != "" {
		r.verdict, err = a.attempt(ctx, runner, k)
	} else {
		r.verdict, err = "as it should be", k.script(ctx, a, runner)
		if err != nil {
			r.verdict = "not as it should be"
		}
	}
	r.err = errors.Join(r.err, err)
	if k.then != nil && r.err == nil {
		r.err = k.then(ctx, a, runner)
	}
	r.took = time.Since(start)
	start = time.Now()
	r.err = errors.Join(r.err, a.cleanUp(ctx, runner))
	r.clean = time.Since(start)
	r.echo = window()
	_, peak, memErr := a.Memory()
	r.grown = max(0, peak-before)
	r.err = errors.Join(r.err, memErr, a.Healthy(ctx), a.unharmed())
	if r.grown > boundMemory {
		r.err = errors.Join(r.err, fmt.Errorf("the service grew by %d MB", r.grown>>20))
	}
	if r.echo.p99 > boundEcho*patience || r.echo.lost {
		r.err = errors.Join(r.err, fmt.Errorf("the neighbour's echo: %+v", r.echo))
	}
	r.tried, r.contained = true, r.err == nil
	return r
}

// attempt brings a program into the runner, runs it, and compares the verdict.
func (a *arena) attempt(ctx context.Context, runner string, k attack) (string, error) {
	command := k.program
	if k.language != "sh" {
		var name string
		var content []byte
		var err error
		if name, content, command, err = k.file(); err == nil {
			err = a.Copy(ctx, runner, nil, platform.File{Path: name, Content: content})
		}
		if err != nil {
			return "", err
		}
	}
	env := map[string]string{"CANARY": a.canaries, "PORTS": a.ports, "PARENT_OF_DATA": filepath.Dir(a.canaries)}
	maps.Copy(env, k.env)
	limit := k.limit
	if limit == 0 {
		limit = 20 * int(patience)
	}
	s, err := a.Start(ctx, runner, platform.Execution{Command: command, TimeLimit: limit, Privileged: k.root, Environment: env})
	if err != nil {
		return "", err
	}
	defer s.Abort()
	beside := make(chan error, 1)
	go func() {
		if k.script == nil {
			beside <- nil
			return
		}
		beside <- k.script(ctx, a, runner)
	}()
	o, err := s.Wait(ctx)
	err = errors.Join(err, <-beside)
	verdict := verdictOf(o)
	out := strings.ReplaceAll(o.Stdout, "\r\n", "\n")
	switch {
	case err != nil:
		return verdict, fmt.Errorf("%w; output %s", err, short(out+o.Stderr))
	case !matches(k.want, verdict):
		return verdict, fmt.Errorf("the verdict is %q, want %q; output %s", verdict, k.want, short(out+o.Stderr))
	case k.stdout != "" && !matches(k.stdout, out):
		return verdict, fmt.Errorf("the output is %s, want %q", short(out+o.Stderr), k.stdout)
	case strings.Contains(out, a.secret) || strings.Contains(out, a.token):
		return verdict, fmt.Errorf("a secret came out: %s", short(out))
	}
	return verdict, nil
}

func verdictOf(o platform.Outcome) string {
	switch o.Final.Type {
	case "exit":
		return fmt.Sprintf("exit %d", o.Final.Code)
	case "error":
		return "error: " + o.Final.Text
	}
	return o.Final.Type
}

func matches(pattern, text string) bool {
	return regexp.MustCompile(`(?s)^(?:` + pattern + `)$`).MatchString(text)
}

func short(s string) string {
	if len(s) > 2000 {
		s = s[:1000] + " … " + s[len(s)-1000:]
	}
	return fmt.Sprintf("%q", s)
}

// sh runs one more command in a runner and returns what it printed.
func (a *arena) sh(ctx context.Context, runner, command string) (string, error) {
	o, err := a.Run(ctx, runner, platform.Execution{Command: command, TimeLimit: 20, Environment: map[string]string{"CANARY": a.canaries}})
	if err == nil && verdictOf(o) != "exit 0" {
		err = fmt.Errorf("%s: %s, %s", command, verdictOf(o), short(o.Stdout+o.Stderr))
	}
	return strings.ReplaceAll(o.Stdout, "\r\n", "\n"), err
}

// cleanUp releases the runner and waits until everything is as it was before the first case, but for what waits for its removal: that is looked at in the end.
func (a *arena) cleanUp(ctx context.Context, runner string) error {
	status, body, err := a.Do(ctx, "DELETE", "/runners/"+runner, nil)
	if err != nil {
		return err
	}
	if status != 204 && status != 410 { // 410: it is gone already
		return fmt.Errorf("release: status %d: %s", status, body)
	}
	ctx, cancel := context.WithTimeout(ctx, boundClean*patience)
	defer cancel()
	if err := a.poolsFull(ctx); err != nil {
		return err
	}
	var now service.Holdings
	err = await(ctx, func() (bool, error) {
		var err error
		now, err = a.Holdings()
		return now.Lasting() == a.quiet.Lasting(), err
	})
	if err != nil {
		return fmt.Errorf("left behind: %+v, quiet is %+v: %w", now, a.quiet, err)
	}
	return nil
}

func (a *arena) poolsFull(ctx context.Context) error {
	return await(ctx, func() (bool, error) {
		all, err := a.Statistics(ctx)
		online := a.offline != nil || all["20"].IdleRunners == poolSize && all["20"].UsedRunners == 0
		return online && all["10"].IdleRunners == poolSize && all["11"].IdleRunners == 1 && all["10"].UsedRunners == 0, err
	})
}

// await asks until it is so.
func await(ctx context.Context, ok func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// unharmed checks that the canaries are as they were.
func (a *arena) unharmed() error {
	var found []string
	err := filepath.WalkDir(a.canaries, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if string(text) == a.secret {
			found = append(found, strings.TrimPrefix(path, a.canaries))
		}
		return err
	})
	if err == nil && !slices.Equal(found, []string{"/dir/inner", "/file"}) {
		err = errors.New("a file of the node was changed")
	}
	return err
}

// categories are those of the checklist, by the first letter of a case's id.
var categories = []struct{ letter, name string }{
	{"A", "resources"}, {"B", "files"}, {"C", "kernel and namespaces"}, {"D", "network"}, {"E", "tenants and the pool"},
	{"F", "terminals and people"}, {"G", "honest verdicts"}, {"H", "API and control plane"}, {"I", "GPU"}, {"J", "images"},
}

// diskUsed is what the service's data take on disk.
func (a *arena) diskUsed() (bytes int64, err error) {
	err = filepath.WalkDir(a.data, func(_ string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return bytes, err
}

func table(rows []row) string {
	var b strings.Builder
	good := 0
	fmt.Fprintf(&b, "%-4s %-58s %-34s %-9s %28s %7s %7s %7s\n", "case", "attack", "verdict", "contained", "neighbour p50/p99/max ms", "grew MB", "took s", "clean s")
	over, missing := 0, 0
	for _, r := range rows {
		yes := "NO"
		if !r.tried && r.err == nil {
			yes = "-"
			missing++
		} else if r.contained {
			yes = "yes"
			good++
		}
		mark := ""
		if r.echo.p99 > goalEcho {
			mark = " *"
			over++
		}
		echo := fmt.Sprintf("%.1f / %.1f / %.1f%s", ms(r.echo.p50), ms(r.echo.p99), ms(r.echo.max), mark)
		fmt.Fprintf(&b, "%-4s %-58s %-34s %-9s %28s %7d %7.1f %7.2f\n", r.id, r.what, r.verdict, yes, echo, r.grown>>20, r.took.Seconds(), r.clean.Seconds())
	}
	b.WriteString("\ncategory                   tried  contained\n")
	for _, c := range categories {
		tried, held := 0, 0
		for _, r := range rows {
			if strings.HasPrefix(r.id, c.letter) && (r.tried || r.err != nil) {
				tried++
				if r.contained {
					held++
				}
			}
		}
		if tried > 0 {
			fmt.Fprintf(&b, "%s %-24s %5d  %9d\n", c.letter, c.name, tried, held)
		}
	}
	fmt.Fprintf(&b, "%d of %d contained, %d not tried; in %d the neighbour's p99 was above %s\n", good, len(rows)-missing, missing, over, goalEcho)
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

const logTail = 8 << 10 // bytes of the log that a failed test shows
