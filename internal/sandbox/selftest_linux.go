//go:build linux && cgo

package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// attempt is one way out that the self-test tries. Only the errors that are named show that the wall stood: any other answer came from behind it.
type attempt struct {
	fence, name string
	refused     []syscall.Errno // empty = whatever is answered, the node looks at what came of it
}

var (
	perm   = []syscall.Errno{unix.EPERM}
	family = []syscall.Errno{unix.EAFNOSUPPORT}
	absent = []syscall.Errno{unix.ENOENT}
	sealed = []syscall.Errno{unix.EROFS, unix.EACCES, unix.EPERM, unix.ENOENT}
	hidden = []syscall.Errno{unix.ENODATA, unix.ENOENT, unix.EACCES, unix.EPERM}
	full   = []syscall.Errno{unix.ENOSPC, unix.EDQUOT}
)

// attempts are in the order in which probe_linux.c makes them.
var attempts = []attempt{
	{"namespace.network", "loopback", []syscall.Errno{unix.ECONNREFUSED}},
	{"namespace.network", "metadata", []syscall.Errno{unix.ENETUNREACH}},
	{"namespace.network", "abstract", []syscall.Errno{unix.ECONNREFUSED}},
	{"namespace.ipc", "shared-memory", absent},
	{"namespace.mount", "node-file", absent},
	{"files.root", "lower", nil},
	{"files.proc", "proc-root", hidden},
	{"files.proc", "proc-environ", hidden},
	{"files.proc", "proc-sys", sealed},
	{"files.proc", "sysrq", sealed},
	{"files.proc", "kcore", hidden},
	{"files.proc", "kallsyms", hidden},
	{"files.sys", "sysfs", absent},
	{"files.dev", "dev-mem", absent},
	{"files.dev", "dev-kvm", absent},
	{"files.dev", "dev-write", sealed},
	{"privilege", "mknod", perm},
	{"oom", "oom-score", sealed},
	{"namespace.user", "setuid", []syscall.Errno{unix.EPERM, unix.EINVAL}},
	{"privilege", "setgroups", perm},
	{"privilege", "capset", perm},
	{"rlimits", "rlimit", perm},
	{"privilege", "realtime", perm},
	{"namespace.uts", "sethostname", perm},
	{"seccomp", "keyctl", perm},
	{"seccomp", "add_key", perm},
	{"seccomp", "io_uring", perm},
	{"seccomp", "bpf", perm},
	{"seccomp", "perf", perm},
	{"seccomp", "userfaultfd", perm},
	{"seccomp", "ptrace", perm},
	{"seccomp", "vm_readv", perm},
	{"seccomp", "file-handle", perm},
	{"seccomp", "init_module", perm},
	{"seccomp", "kexec", perm},
	{"seccomp", "reboot", perm},
	{"seccomp", "TIOCSTI", perm},
	{"seccomp", "personality", perm},
	{"seccomp", "clone3", []syscall.Errno{unix.ENOSYS}},
	{"seccomp", "unknown-call", []syscall.Errno{unix.ENOSYS}},
	{"seccomp", "vsock", family},
	{"seccomp", "packet", family},
	{"seccomp", "alg", family},
	{"seccomp", "netfilter", family},
	{"privilege", "raw", perm},
	{"files.disk", "disk", full},
	{"files.disk", "shm", full},
	{"files.disk", "inodes", full},
	{"namespace.mount", "mount", perm},
	{"namespace.cgroup", "mount-cgroup", perm},
	{"namespace.mount", "fsopen", perm},
	{"namespace.mount", "umount", perm},
	{"namespace.mount", "pivot_root", perm},
	{"namespace.mount", "chroot", perm},
	{"namespace.pid", "setns", perm},
	{"namespace.user", "clone-user", perm},
	{"namespace.user", "unshare-user", perm},
	{"cgroup.pids", "processes", []syscall.Errno{unix.EAGAIN}},
}

// What the self-test's sandbox may take, and what it tries to take.
var (
	testLimits = Limits{MemoryBytes: 64 << 20, PIDs: 16, DiskBytes: 1 << 20, DiskInodes: 128, FileSizeBytes: 1 << 30}
	testGreed  = []string{"4194304", "1024", "64"} // bytes, files, processes
)

// outcome is what a self-test found about one fence.
type outcome struct {
	answers map[string][]string // the kernel's answer: the attempts that got it
	through []string            // attempts that no wall stopped
}

func (o *outcome) add(name, answer string, refused bool) {
	if !refused {
		o.through = append(o.through, name+" ("+answer+")")
		return
	}
	if o.answers == nil {
		o.answers = make(map[string][]string)
	}
	o.answers[answer] = append(o.answers[answer], name)
}

func (o *outcome) String() string {
	if len(o.through) > 0 {
		return "tried: NOT STOPPED: " + strings.Join(o.through, ", ")
	}
	var parts []string
	for answer, names := range o.answers {
		parts = append(parts, strings.Join(names, " ")+" ("+answer+")")
	}
	slices.Sort(parts)
	return "tried: " + strings.Join(parts, ", ")
}

// SelfTest makes a sandbox and tries to get out of it. What it finds is in [Runtime.Fences] from then on. It fails with [ErrNotContained] when a wall
// does not stand, unless the configuration allows that.
func (r *Runtime) SelfTest(ctx context.Context, root Root) error {
	found, err := r.tryOut(ctx, root, "")
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	r.mu.Lock()
	r.tried = found
	r.mu.Unlock()
	var through []string
	for _, f := range r.Fences() {
		if o := found[f.Name]; o != nil && len(o.through) > 0 {
			through = append(through, f.Name+": "+strings.Join(o.through, ", "))
		}
	}
	if len(through) == 0 {
		return nil
	}
	err = fmt.Errorf("%w: in the self-test these got through: %s", ErrNotContained, strings.Join(through, "; "))
	if r.cfg.AllowUnconfined {
		r.log.WithError(err).Warn("running all the same, as the configuration allows")
		return nil
	}
	return err
}

// tryOut runs the attempts as one user of a sandbox and judges them.
func (r *Runtime) tryOut(ctx context.Context, root Root, user string) (found map[string]*outcome, err error) {
	bait, err := newBait(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bait.remove()) }()
	s, err := r.Create(ctx, Spec{ID: "self-test-" + strings.ToLower(rand.Text()), Root: root, Limits: testLimits})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Destroy(context.WithoutCancel(ctx))) }()
	e, err := s.exec(ctx, ExecSpec{ID: "probe", Argv: append(bait.arguments(), testGreed...), Dir: "/", User: user, MergeStderr: true}, kindProbe)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.Kill() })
	defer stop()
	reports, err := io.ReadAll(e.Stdout())
	if err != nil {
		return nil, err
	}
	<-e.Done()
	if result, err := e.Result(); err != nil || result.ExitCode != 0 {
		return nil, errors.Join(fmt.Errorf("the attempts ended with %d, after %d of %d", result.ExitCode, len(reports)/trialSize, len(attempts)), err)
	}
	if found, err = judgeTrials(reports); err != nil {
		return nil, err
	}
	for _, lower := range s.spec.Root.Lower {
		if _, err := os.Lstat(filepath.Join(lower, "rockpool-self-test")); !errors.Is(err, os.ErrNotExist) {
			found["files.root"].add("lower", "a file of the image was written", false)
		}
	}
	return found, s.charged(found)
}

// charged looks whether what the sandbox takes is counted at all.
func (s *Sandbox) charged(found map[string]*outcome) error {
	use, err := s.Usage()
	if err != nil {
		return err
	}
	memory := &outcome{}
	memory.add("charge", fmt.Sprintf("%d KiB in the sandbox's group", use.MemoryBytes>>10), use.MemoryBytes > 0)
	if _, ok := s.group.file("memory", "m", "m"); ok {
		found["cgroup.memory"] = memory
	}
	return nil
}

// judgeTrials turns the reports of the probe into outcomes. Every attempt must be there, in its place.
func judgeTrials(reports []byte) (map[string]*outcome, error) {
	if len(reports) != trialSize*len(attempts) {
		return nil, fmt.Errorf("%d bytes of reports for %d attempts", len(reports), len(attempts))
	}
	found := make(map[string]*outcome)
	for i, a := range attempts {
		report := reports[i*trialSize : (i+1)*trialSize]
		name, _, _ := bytes.Cut(report[:trialSize-4], []byte{0})
		if string(name) != a.name {
			return nil, fmt.Errorf("attempt %d is %q instead of %q", i, name, a.name)
		}
		errno := syscall.Errno(native.Uint32(report[trialSize-4:]))
		answer := unix.ErrnoName(errno)
		if errno == 0 {
			answer = "done"
		}
		if len(a.refused) == 0 {
			answer = "only the writable layer"
		}
		if found[a.fence] == nil {
			found[a.fence] = &outcome{}
		}
		found[a.fence].add(a.name, answer, len(a.refused) == 0 || slices.Contains(a.refused, errno))
	}
	return found, nil
}

// bait is what lies outside for the attempts to reach: a port, an abstract socket, a file, a segment of shared memory.
type bait struct {
	tcp      net.Listener
	abstract net.Listener
	file     *os.File
	key      int64
	segment  int
}

func newBait(dir string) (b *bait, err error) {
	b = &bait{segment: -1}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("lay out bait: %w", err), b.remove())
		}
	}()
	if b.tcp, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return b, err
	}
	if b.abstract, err = net.Listen("unix", "@rockpool-"+rand.Text()); err != nil {
		return b, err
	}
	if b.file, err = os.CreateTemp(dir, "self-test-"); err != nil {
		return b, err
	}
	key, err := rand.Int(rand.Reader, big.NewInt(1<<30))
	if err != nil {
		return b, err
	}
	b.key = key.Int64() + 1
	b.segment, err = unix.SysvShmGet(int(b.key), 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o666)
	return b, err
}

// arguments are those of probe_linux.c, as far as they name the bait.
func (b *bait) arguments() []string {
	_, port, _ := net.SplitHostPort(b.tcp.Addr().String())
	return []string{port, strings.TrimPrefix(b.abstract.Addr().String(), "@"), b.file.Name(), strconv.FormatInt(b.key, 10)}
}

func (b *bait) remove() error {
	var errs []error
	for _, l := range []net.Listener{b.tcp, b.abstract} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if b.file != nil {
		errs = append(errs, b.file.Close(), os.Remove(b.file.Name()))
	}
	if b.segment >= 0 {
		_, err := unix.SysvShmCtl(b.segment, unix.IPC_RMID, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
