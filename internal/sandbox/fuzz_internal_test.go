//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// descriptors counts what this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// anExec is a well-formed request, as the node sends it.
func anExec(kind uint32, edit ...func(*ExecSpec)) []byte {
	spec := ExecSpec{Argv: []string{"no-such-program", "x"}, Dir: "/", MergeStderr: true}
	for _, e := range edit {
		e(&spec)
	}
	message := execMessage(spec, identity{groups: []uint32{1, 2}}, []string{"A=b", "PATH=/bin"}, true)
	return append(header(kind, len(message), 3), message...)
}

// raw sends bytes and descriptors to process 1 as they are, and waits until it, or its child, has closed the connection.
func (s *Sandbox) raw(t testing.TB, data []byte, count int) {
	t.Helper()
	c, err := s.dial(t.Context())
	if err != nil {
		t.Fatalf("process 1 takes no connection: %v", err)
	}
	defer c.close()
	var fds []int
	for range count {
		fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	var rights []byte
	if count > 0 {
		rights = unix.UnixRights(fds...)
	}
	first := min(len(data), headerSize)
	if first > 0 {
		if _, _, err := c.WriteMsgUnix(data[:first], rights, nil); err == nil {
			_, _ = c.Write(data[first:]) // it may have hung up by then
		}
	}
	closeNumbers(fds)
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("process 1 holds on to a connection: %d bytes, %d descriptors: %x", len(data), count, data[:min(64, len(data))])
	}
}

// lives asks process 1 for a sign of life.
func (s *Sandbox) lives(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.ping(ctx); err != nil {
		t.Fatalf("process 1 does not answer: %v", err)
	}
}

func fuzzed(tb testing.TB) *Sandbox {
	tb.Helper()
	t, ok := tb.(interface{ TempDir() string })
	if !ok || os.Geteuid() != 0 {
		tb.Skip("sandboxes need root")
	}
	r, err := New(Config{Dir: t.TempDir(), CgroupParent: fmt.Sprintf("rockpool-fuzz-%d", os.Getpid()), IDBase: 0x35000000})
	if err != nil {
		tb.Skipf("this machine cannot run sandboxes: %v", err)
	}
	lower := t.TempDir()
	if err := os.Chmod(lower, 0o755); err != nil {
		tb.Fatal(err)
	}
	s, err := r.Create(tb.Context(), Spec{ID: "fuzzed", Root: Root{Lower: []string{lower}}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(s.Destroy(ctx), r.Close()); err != nil {
			tb.Error(err)
		}
		for _, h := range slices.Concat(r.hierarchies, r.blkio, r.devices) {
			if err := os.Remove(h.base); err != nil {
				tb.Errorf("control group left: %v", err)
			}
		}
	})
	return s
}

// mutate changes a few bytes, or the length, of a request.
func mutate(random *rand.Rand, data []byte) []byte {
	out := append([]byte(nil), data...)
	for range 1 + random.IntN(4) {
		switch random.IntN(6) {
		case 0: // any byte
			out[random.IntN(len(out))] = byte(random.Uint32())
		case 1: // a number, as lengths and counts are
			native.PutUint32(out[random.IntN(len(out)/4)*4:], []uint32{0, 1, 63, 64, 65, 65535, 65536, 65537, 1 << 20, 1 << 31, ^uint32(0), ^uint32(0) - 3}[random.IntN(12)])
		case 2: // cut off
			out = out[:headerSize+random.IntN(len(out)-headerSize+1)]
		case 3: // longer
			out = append(out, make([]byte, random.IntN(64))...)
		case 4: // another kind
			native.PutUint32(out[4:], random.Uint32N(8))
		case 5: // another length
			native.PutUint32(out[8:], random.Uint32N(uint32(2*len(out))))
		}
		if len(out) < headerSize+8 {
			return out
		}
	}
	return out
}

// Whatever comes in on its socket, process 1 lives and takes the next request.
func FuzzRequests(f *testing.F) {
	tty := func(s *ExecSpec) { s.TTY = true }
	seeds := [][]byte{nil, header(kindPing, 0, 0), anExec(kindExec), anExec(kindExec, tty), anExec(kindHold), anExec(kindKeep, func(s *ExecSpec) { s.MergeStderr = false }), header(kindResume, 0, 0), anExec(99), anExec(kindStarting), header(kindExec, 5<<20, 0)}
	for _, data := range seeds {
		for _, count := range []int{0, 1, 3, 16, 17, 40} {
			f.Add(data, count)
		}
	}
	s := fuzzed(f)
	f.Fuzz(func(t *testing.T, data []byte, count int) {
		s.raw(t, data, max(0, min(count, 200)))
		s.lives(t)
	})
}

func TestMutatedRequestsDoNotHarmProcess1(t *testing.T) {
	s := fuzzed(t)
	random := rand.New(rand.NewPCG(1, 2))
	valid := [][]byte{anExec(kindExec), anExec(kindHold), anExec(kindKeep, func(e *ExecSpec) { e.MergeStderr = false }), anExec(kindExec, func(e *ExecSpec) { e.TTY = true; e.MergeStderr = false })}
	for range 400 {
		s.raw(t, mutate(random, valid[random.IntN(len(valid))]), random.IntN(20))
	}
	s.lives(t)
	select {
	case <-s.Done():
		t.Error("the sandbox has ended")
	default:
	}
	// What the requests started is gone with them: no zombie stays, no descriptor of theirs.
	if list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid)); err != nil || len(list) > 8+keptStreams {
		t.Errorf("process 1 has %d descriptors: %v", len(list), err)
	}
	eventuallyAlone(t, s)
}

// eventuallyAlone waits until process 1 has no child left.
func eventuallyAlone(t *testing.T, s *Sandbox) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := s.group.pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) <= 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes are left", len(pids))
		}
		s.lives(t) // a round trip, in which it also reaps
	}
}

// answers is a supervisor that says what it was told to, on every connection, with that many descriptors, and hangs up.
type answers struct {
	data  []byte
	fds   int
	later []byte // after the first message
}

// impostor listens in the place of process 1.
func impostor(t testing.TB, s *Sandbox, a answers) *Sandbox {
	t.Helper()
	place := t.TempDir()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(place, socketFile), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(place)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			a.serve(c)
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
		_ = dir.Close()
	})
	return &Sandbox{runtime: s.runtime, id: s.id, spec: s.spec, slot: s.slot, pid: s.pid, root: s.root, group: s.group, dir: dir, done: make(chan struct{})}
}

func (a answers) serve(c *net.UnixConn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	buf, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*maxTestFDs))
	_, n, _, _, err := c.ReadMsgUnix(buf, control)
	if err != nil {
		return
	}
	if parsed, err := unix.ParseSocketControlMessage(control[:n]); err == nil { // the status pipe among them: its end means that a program runs
		for i := range parsed {
			fds, _ := unix.ParseUnixRights(&parsed[i])
			closeNumbers(fds)
		}
	}
	var rights []byte
	if a.fds > 0 {
		fds := make([]int, a.fds)
		for i := range fds {
			fds[i] = 0
		}
		null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(null)
		for i := range fds {
			fds[i] = null
		}
		rights = unix.UnixRights(fds...)
	}
	if len(a.data) > 0 {
		_, _, _ = c.WriteMsgUnix(a.data, rights, nil)
	}
	if len(a.later) > 0 {
		_, _ = c.Write(a.later)
	}
}

// maxTestFDs is more than a request carries.
const maxTestFDs = 32

func anEvent(kind uint32, value int32) []byte {
	var b body
	b.u32(frameMagic)
	b.u32(kind)
	b.u32(uint32(value))
	b.u32(0)
	return b
}

// Whatever a supervisor says, the node neither hangs, nor leaks, nor takes it for an outcome that it is not.
func FuzzAnswers(f *testing.F) {
	for _, tty := range []bool{false, true} {
		for _, fds := range []int{0, 1, 2, 3, 4, 5, 100} {
			f.Add(anEvent(kindStarting, 7), fds, anEvent(kindExited, 0), tty)
			f.Add(anEvent(kindStarting, 7), fds, anEvent(kindStarting, 0), tty)
			f.Add(anEvent(kindStarting, 7), fds, []byte{}, tty)
			f.Add(anEvent(kindExited, 0), fds, []byte{}, tty)
		}
		f.Add([]byte{}, 0, []byte{}, tty)
		f.Add([]byte("x"), 1, []byte("y"), tty)
		f.Add(make([]byte, eventSize), 1, make([]byte, 1<<20), tty)
		f.Add(anEvent(kindStarting, 7)[:9], 1, anEvent(kindStarting, 7)[9:], tty)
	}
	s := fuzzed(f)
	f.Fuzz(func(t *testing.T, data []byte, fds int, later []byte, tty bool) {
		before := descriptors(t)
		t.Run("", func(t *testing.T) {
			fake := impostor(t, s, answers{data, max(0, min(fds, 200)), later})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for _, start := range []func() (*Execution, error){
				func() (*Execution, error) {
					return fake.Exec(ctx, ExecSpec{ID: "x", Argv: []string{"x"}, TTY: tty, Dir: "/"})
				},
				func() (*Execution, error) { return fake.resume(ctx, "kept") },
			} {
				e, err := start()
				if err != nil {
					continue
				}
				select {
				case <-e.Done():
				case <-ctx.Done():
					t.Fatal("it never ends")
				}
				for _, r := range []io.Reader{e.Stdout(), e.Stderr()} {
					_, _ = io.Copy(io.Discard, r)
				}
				whole := len(later) >= eventSize && native.Uint32(later) == frameMagic && native.Uint32(later[4:]) == kindExited
				if result, err := e.Result(); err == nil && !whole {
					t.Errorf("an outcome out of nothing: %+v", result)
				}
			}
		})
		if after := descriptors(t); after > before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add(anEvent(kindExited, 9))
	f.Add(make([]byte, verdictSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := parseEvent(data); err == nil && len(data) != eventSize {
			t.Error("an event of another size")
		}
		if _, err := parseVerdict(data); err == nil && len(data) != verdictSize {
			t.Error("a verdict of another size")
		}
	})
}
