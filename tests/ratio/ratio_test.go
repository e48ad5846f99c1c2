package ratio

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/tests/meter"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

const (
	// rounds is how often the service's operations and the reference's take turns.
	rounds = 6

	env  = 10
	pool = 16
	// A line as it is sent, by client and reference.
	hello = "print('hello')\n"
)

// pair is an operation of the service beside the least that it takes.
type pair struct {
	name   string
	n      int // operations in a block
	limits limits
	// Each runs n operations and returns what each took; the hook is called within each of the service's.
	subject   func(ctx context.Context, w *world, n int) ([]time.Duration, error)
	reference func(ctx context.Context, w *world, n int) ([]time.Duration, error)
}

var pairs = []pair{
	{"claim | fsync and ten requests over loopback", 12, limits{wall: 3.6}, claims, fsyncAndRequests},
	{"claim, destroy and refill | true in new namespaces", 12, limits{cpu: 11, allocations: 6500}, claims, trueInNamespaces},
	{"echo | bash -c echo", 32, limits{wall: 4, cpu: 3.6, allocations: 940}, each(echo), each(plainEcho)},
	{"cycle | python3", 8, limits{cpu: 4.2, allocations: 8800}, each(cycle), each(plainPython)},
	{"line to a program and back | the same over TCP and pipes", 1000, limits{wall: 11, allocations: 16}, lines, plainLines},
	{"upload | ten requests that write a file", 40, limits{wall: 3.8, cpu: 3.4, allocations: 720}, each(upload), each(plainUpload)},
}

// world is a service, and what references need.
type world struct {
	*service.Service
	dir     string // of references; on the same file system as the service's
	server  *httptest.Server
	log     service.Log
	metrics string
	hook    func()
	polls   float64 // how often the pool was looked at
	poll    float64 // allocations of one look
	runner  string  // for operations inside one
	file    *os.File
}

// newWorld starts a service whose state is in memory: how long a disk takes to sync says nothing about the program.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"); err != nil {
		t.Skipf("no file system in memory: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	bin, err := service.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	port, err := service.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir, hook: func() {}, metrics: "127.0.0.1:" + strconv.Itoa(port)}
	w.Service, err = service.Start(t.Context(), service.Options{
		Binary: bin, Dir: filepath.Join(dir, "data"), Token: "ratio", Log: &w.log, Env: []string{"ROCKPOOL_METRICS_ADDRESS=" + w.metrics},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, w.log.Tail(5000))
	}
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the end of the log:\n%s", w.log.Tail(5000))
		}
	})
	w.server = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.server.Close)
	if w.file, err = os.Create(filepath.Join(dir, "synced")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.file.Close() })
	if err := os.WriteFile(filepath.Join(dir, "hello.py"), []byte(hello), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.PutEnvironment(t.Context(), env, platform.Environment{PrewarmingPoolSize: pool, CPULimit: 100, MemoryLimit: 128, Image: "host"}); err != nil {
		t.Fatal(err)
	}
	if err := w.full(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.runner, err = w.Claim(t.Context(), env, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.full(t.Context()), w.weigh(t.Context())); err != nil {
		t.Fatal(err)
	}
	return w
}

// full waits for all idle runners.
func (w *world) full(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		w.polls++
		s, err := w.Statistics(ctx)
		if err != nil || s[strconv.Itoa(env)].IdleRunners == pool {
			return err
		}
		<-tick.C
	}
}

// weigh measures what a look at the pool allocates, which is taken off what is measured: how many looks it takes is a matter of time.
func (w *world) weigh(ctx context.Context) error {
	const looks = 100
	before, err := w.allocated()
	if err != nil {
		return err
	}
	for range looks {
		if err := w.full(ctx); err != nil {
			return err
		}
	}
	after, err := w.allocated()
	w.poll = (after - before) / looks
	return err
}

// allocated is how many allocations the service has made, those of answering this included.
func (w *world) allocated() (float64, error) {
	resp, err := http.Get("http://" + w.metrics + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "go_memstats_mallocs_total "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, errors.New("the service does not tell its allocations")
}

// taken runs a block of the service's operations.
func (w *world) taken(ctx context.Context, p pair, n int) (b block, err error) {
	if err := w.full(ctx); err != nil {
		return b, err
	}
	allocated, err := w.allocated()
	if err != nil {
		return b, err
	}
	polls := w.polls
	cpu, err := meter.Tree(w.PID())
	if err != nil {
		return b, err
	}
	if b.walls, err = p.subject(ctx, w, n); err != nil {
		return b, err
	}
	if err := w.full(ctx); err != nil { // the refill is a part of the cost
		return b, err
	}
	after, err := meter.Tree(w.PID())
	if err != nil {
		return b, err
	}
	b.cpu = after - cpu
	b.allocations, err = w.allocated()
	b.allocations -= allocated + (w.polls-polls)*w.poll
	return b, err
}

// referred runs a block of the reference.
func (w *world) referred(ctx context.Context, p pair) (b block, err error) {
	cpu := used()
	b.walls, err = p.reference(ctx, w, p.n)
	b.cpu = used() - cpu
	return b, err
}

// used is the CPU time of this process and of those it has waited for.
func used() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// measure has both take turns. change makes blocks of twice the size into what is to be judged, nil = as they are.
func (w *world) measure(ctx context.Context, p pair, change func(block) block) (found, error) {
	var subject, reference []block
	machine, err := meter.Watch()
	if err != nil {
		return found{}, err
	}
	n := p.n
	if change != nil {
		n *= 2
	}
	for range rounds {
		r, err := w.referred(ctx, p)
		if err != nil {
			return found{}, fmt.Errorf("reference: %w", err)
		}
		s, err := w.taken(ctx, p, n)
		if err != nil {
			return found{}, err
		}
		if change != nil {
			s = change(s)
		}
		subject, reference = append(subject, s), append(reference, r)
	}
	f := compare(subject, reference)
	others, err := machine.Others()
	f.others = others / float64(runtime.NumCPU())
	return f, err
}

// Nothing has become twice as expensive as it was. What exceeds a limit is measured again: only what does so twice is a regression. ROCKPOOL_RATIO_RUNS repeats it,
// ROCKPOOL_RATIO_SPIN keeps so many processes busy meanwhile: both to see how far from the limits noise stays.
func TestNothingCostsTwiceAsMuch(t *testing.T) {
	w := newWorld(t)
	runs := max(1, number("ROCKPOOL_RATIO_RUNS"))
	for range number("ROCKPOOL_RATIO_SPIN") {
		spin := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
		if err := spin.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = spin.Wait() })
	}
	again := 0
	for range runs {
		for _, p := range pairs {
			f, err := w.measure(t.Context(), p, nil)
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			t.Logf("%-62s time %5.2f (%g)  CPU %5.2f (%g)  allocations %6.0f (%g)  others %.2f", p.name, f.wall, p.limits.wall, f.cpu, p.limits.cpu, f.allocations,
				p.limits.allocations, f.others)
			first := f.beyond(p.limits)
			if first == "" {
				continue
			}
			again++
			if f, err = w.measure(t.Context(), p, nil); err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			if second := f.beyond(p.limits); second != "" {
				t.Errorf("%s: %s; and again: %s", p.name, first, second)
			}
		}
	}
	t.Logf("%d of %d measurements were made again", again, runs*len(pairs))
}

// Each limit finds a doubling: of the work, by two operations that count as one, and of the time, by a pause as long as the operation itself.
func TestADoublingIsFound(t *testing.T) {
	w := newWorld(t)
	for _, p := range pairs {
		usual, err := w.measure(t.Context(), p, nil)
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		twice, err := w.measure(t.Context(), p, doubled)
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		t.Logf("%-62s %.2f, with twice the work %.2f", p.name, usual, twice)
		twice.others = 0 // it has to be found where the machine is quiet
		if twice.beyond(p.limits) == "" {
			t.Errorf("%s: twice the work was not found: %+v", p.name, twice)
		}
		if p.limits.wall == 0 || usual.others >= crowded {
			continue // times are not judged
		}
		walls, err := p.subject(t.Context(), w, p.n)
		if err != nil {
			t.Fatal(err)
		}
		pause := low([]block{{walls: walls}})
		w.hook = func() { time.Sleep(pause) }
		late, err := w.measure(t.Context(), p, nil)
		w.hook = func() {}
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		late.others = 0
		if late.beyond(p.limits) == "" {
			t.Errorf("%s: a pause of %v was not found: %+v", p.name, pause, late)
		}
	}
}

func number(name string) int {
	n, _ := strconv.Atoi(os.Getenv(name)) // what is no number is none
	return n
}

// each repeats one operation.
func each(op func(ctx context.Context, w *world) error) func(context.Context, *world, int) ([]time.Duration, error) {
	return func(ctx context.Context, w *world, n int) (walls []time.Duration, err error) {
		for range n {
			start := time.Now()
			if err := op(ctx, w); err != nil {
				return nil, err
			}
			walls = append(walls, time.Since(start))
		}
		return walls, nil
	}
}

// claims are timed with the pool full; what was claimed is destroyed, and replaced, before the next.
func claims(ctx context.Context, w *world, n int) (walls []time.Duration, err error) {
	for range n {
		start := time.Now()
		w.hook()
		r, err := w.Claim(ctx, env, time.Minute)
		if err != nil {
			return nil, err
		}
		walls = append(walls, time.Since(start))
		if err := w.Release(ctx, r); err != nil {
			return nil, err
		}
		if err := w.full(ctx); err != nil {
			return nil, err
		}
	}
	return walls, nil
}

func echo(ctx context.Context, w *world) error {
	w.hook()
	o, err := w.Run(ctx, w.runner, platform.Execution{Command: "echo hi", TimeLimit: 20})
	if err != nil || o.Stdout != "hi\r\n" || o.Final.Type != "exit" || o.Final.Code != 0 {
		return fmt.Errorf("echo hi: %+v, %v", o, err)
	}
	return nil
}

func cycle(ctx context.Context, w *world) error {
	w.hook()
	r, err := w.Claim(ctx, env, time.Minute)
	if err != nil {
		return err
	}
	if err := w.Copy(ctx, r, []string{"./*"}, platform.File{Path: "hello.py", Content: []byte(hello)}); err != nil {
		return err
	}
	o, err := w.Run(ctx, r, platform.Execution{Command: "python3 hello.py", TimeLimit: 20})
	if err != nil || o.Stdout != "hello\r\n" || o.Final.Type != "exit" || o.Final.Code != 0 {
		return fmt.Errorf("python3 hello.py: %+v, %v", o, err)
	}
	return w.Release(ctx, r)
}

// lines go to a program in a runner and come back.
func lines(ctx context.Context, w *world, n int) ([]time.Duration, error) {
	s, err := w.Start(ctx, w.runner, platform.Execution{Command: "stty -echo; echo ready; exec cat"})
	if err != nil {
		return nil, err
	}
	defer s.Abort()
	until := func(want string) error {
		for seen := ""; !strings.HasSuffix(seen, want+"\r\n"); {
			m, err := s.Next(ctx)
			if err != nil {
				return err
			}
			seen += m.Text
		}
		return nil
	}
	if err := until("ready"); err != nil {
		return nil, err
	}
	i := 0
	return each(func(context.Context, *world) error {
		i++
		w.hook()
		return errors.Join(s.Send(strconv.Itoa(i)+"\n"), until(strconv.Itoa(i)))
	})(ctx, w, n)
}

func upload(ctx context.Context, w *world) error {
	w.hook()
	return w.Copy(ctx, w.runner, nil, platform.File{Path: "main.py", Content: []byte(strings.Repeat(hello, 140))})
}

// The references.

func fsyncAndRequests(ctx context.Context, w *world, n int) ([]time.Duration, error) {
	return each(func(ctx context.Context, w *world) error {
		if _, err := w.file.WriteAt(make([]byte, 4096), 0); err != nil {
			return err
		}
		return errors.Join(w.file.Sync(), w.requests(ctx, hello))
	})(ctx, w, n)
}

// requests are ten over loopback, one after the other, to a server that writes a file.
func (w *world) requests(ctx context.Context, body string) error {
	for range 10 {
		if err := w.request(ctx, body); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) request(ctx context.Context, body string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, w.server.URL, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// serve writes what it is sent to a file.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, "sent"), body, 0o600)
	}
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
	}
}

func plainUpload(ctx context.Context, w *world) error {
	return w.requests(ctx, strings.Repeat(hello, 140))
}

func trueInNamespaces(ctx context.Context, w *world, n int) ([]time.Duration, error) {
	return each(func(ctx context.Context, _ *world) error {
		cmd := exec.CommandContext(ctx, "/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP}
		return cmd.Run()
	})(ctx, w, n)
}

func plainEcho(ctx context.Context, _ *world) error {
	return says(exec.CommandContext(ctx, "bash", "-c", "echo hi"), "hi\n")
}

func plainPython(ctx context.Context, w *world) error {
	return says(exec.CommandContext(ctx, "/usr/bin/python3", filepath.Join(w.dir, "hello.py")), "hello\n")
}

func says(cmd *exec.Cmd, want string) error {
	out, err := cmd.Output()
	if err == nil && string(out) != want {
		err = fmt.Errorf("%v says %q", cmd.Args, out)
	}
	return err
}

// plainLines go over a TCP connection to this process, from there through pipes to cat, and back.
func plainLines(ctx context.Context, w *world, n int) ([]time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			cat := exec.CommandContext(ctx, "cat")
			in, err := cat.StdinPipe()
			if err != nil {
				return err
			}
			out, err := cat.StdoutPipe()
			if err != nil {
				return err
			}
			if err := cat.Start(); err != nil {
				return err
			}
			back := make(chan error, 1)
			go func() { _, err := io.Copy(struct{ io.Writer }{c}, out); back <- err }()
			_, err = io.Copy(in, struct{ io.Reader }{c})
			return errors.Join(err, in.Close(), <-back, cat.Wait())
		}()
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	answers := bufio.NewReader(c)
	walls, err := each(func(context.Context, *world) error {
		if _, err := io.WriteString(c, "line\n"); err != nil {
			return err
		}
		_, err := answers.ReadString('\n')
		return err
	})(ctx, w, n)
	return walls, errors.Join(err, c.Close(), <-served)
}
