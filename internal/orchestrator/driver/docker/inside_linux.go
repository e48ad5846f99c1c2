package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inside is a container's processes, seen from this machine.
type inside struct {
	pids  string // the pid namespace, as /proc names it
	group group  // the container's own
	main  group  // where all that is no execution lives
	root  *os.File
	// idBase is the id on this machine of root inside; -1 where ids are not mapped in one piece.
	idBase int64
}

const (
	mainGroup = "rockpool-main"
	execGroup = "rockpool-x-"
)

// enter finds a container's processes by its init. The container's id in the control group and the engine's own file inside the root show that the process is
// what the engine means; otherwise the error is errElsewhere.
func enter(pid int, id, hostnamePath string) (_ *inside, err error) {
	i := &inside{}
	if i.pids, err = os.Readlink(procPath(pid, "ns/pid")); err != nil {
		return nil, fmt.Errorf("%w: process %d: %w", errElsewhere, pid, err)
	}
	if own, err := os.Readlink("/proc/self/ns/pid"); err != nil || own == i.pids {
		return nil, fmt.Errorf("%w: process %d has no pid namespace of its own", errElsewhere, pid)
	}
	if i.group, err = groupOf(pid, id); err != nil {
		return nil, err
	}
	if i.root, err = openRoot(pid, hostnamePath); err != nil {
		return nil, err
	}
	i.idBase = idBase(pid)
	i.main = i.group.child(mainGroup)
	if err := i.settle(); err != nil {
		_ = i.root.Close()
		return nil, fmt.Errorf("%w: its control group cannot be divided: %w", errElsewhere, err)
	}
	return i, nil
}

// idBase reads how a process's user namespace maps ids (user_namespaces(7)).
func idBase(pid int) int64 {
	const least = 1 << 16 // ids that an image may use
	base := int64(-1)
	for _, name := range []string{"uid_map", "gid_map"} {
		text, err := os.ReadFile(procPath(pid, name))
		var inside, outside, count int64
		if _, scanned := fmt.Sscan(string(text), &inside, &outside, &count); err != nil || scanned != nil || inside != 0 || count < least {
			return -1
		}
		if base >= 0 && base != outside {
			return -1
		}
		base = outside
	}
	return base
}

// settle moves all that is there into a group of its own, and kills the executions of an earlier agent. From then on, what is in
// the container's group itself has come with the execution that is being started.
func (i *inside) settle() error {
	if err := i.main.make(); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	for _, name := range i.group.children() {
		if strings.HasPrefix(name, execGroup) {
			if err := i.group.child(name).end(ctx); err != nil {
				return err
			}
		}
	}
	return i.group.moveTo(i.main)
}

// openRoot opens the root directory of a process, if it is the container's: it has the engine's own hostname file mounted.
func openRoot(pid int, hostnamePath string) (*os.File, error) {
	fd, err := unix.Open(procPath(pid, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: root of process %d: %w", errElsewhere, pid, err)
	}
	root := os.NewFile(uintptr(fd), "root")
	var outside, within unix.Stat_t
	err = unix.Stat(hostnamePath, &outside)
	if err == nil {
		var file int
		if file, err = unix.Openat2(fd, "etc/hostname", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}); err == nil {
			err = unix.Fstat(file, &within)
			_ = unix.Close(file)
		}
	}
	if err == nil && (outside.Dev != within.Dev || outside.Ino != within.Ino) {
		err = errors.New("it has another root than the container")
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("%w: process %d: %w", errElsewhere, pid, err)
	}
	return root, nil
}

func (i *inside) close() { _ = i.root.Close() }

// admit takes an execution that was just started into a control group of its own, with all that it has started since. Only one
// is started at a time, so whatever is in the container's group itself belongs to it.
func (i *inside) admit(ctx context.Context, pid int, name string, oomKills int64) (*program, error) {
	p := &program{group: i.group.child(execGroup + name), container: i.group, oomBefore: oomKills}
	if err := p.group.make(); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	switch {
	case err == nil:
		p.handle = os.NewFile(uintptr(fd), "pidfd")
		if ns, err := os.Readlink(procPath(pid, "ns/pid")); err == nil && ns != i.pids { // it has ended, and its number is another's
			_ = p.handle.Close()
			p.handle = nil
		}
	case !errors.Is(err, unix.ESRCH):
		return nil, errors.Join(fmt.Errorf("open process %d: %w", pid, err), p.group.end(ctx))
	}
	p.outputs = outputs(pid)
	err = nil
	if p.handle != nil { // a runtime may have started it beside the init
		err = p.group.take(pid)
	}
	if err == nil {
		err = i.group.moveTo(p.group)
	}
	p.early = oomKills >= 0 && i.group.oomKills() > oomKills
	if err != nil {
		return nil, errors.Join(err, p.kill(ctx))
	}
	return p, nil
}

// program is an execution's processes.
type program struct {
	handle           *os.File // of the main process; nil = it had ended when it was looked at
	group, container group
	oomBefore        int64    // count of the container when it was started; in v2 there is none of its own
	early            bool     // memory ran out before it was in its own group
	outputs          []string // what its main process had as stdout and stderr, as /proc names it
}

// wait waits for the end of the main process. close ends the wait.
func (p *program) wait() error {
	if p.handle == nil {
		return nil
	}
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
}

func outputs(pid int) (names []string) {
	for _, fd := range []string{"fd/1", "fd/2"} {
		if name, err := os.Readlink(procPath(pid, fd)); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// writes says whether a process of the execution still has its output. While one has, the end of the stream is the loss of a connection.
func (p *program) writes() bool {
	pids, _ := members(p.group.procs)
	for _, text := range pids {
		pid, _ := strconv.Atoi(text)
		if slices.ContainsFunc(outputs(pid), func(name string) bool { return slices.Contains(p.outputs, name) }) {
			return true
		}
	}
	return false
}

// signal signals the main process; one that has ended takes no notice.
func (p *program) signal(n int) error {
	if p.handle == nil {
		return nil
	}
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return nil
	}
	var sent error
	if conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.Signal(n), nil, 0) }) != nil || errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// kill ends all of it.
func (p *program) kill(ctx context.Context) error { return p.group.kill(ctx) }

// close forgets the execution; what still runs of it stays until the container ends.
func (p *program) close() {
	if p.handle != nil {
		_ = p.handle.Close()
	}
	p.group.remove()
}

// endedBy is the signal that ended the main process, or 0, where the kernel tells (Linux 6.15): the engine tells only a number that
// a program may also return by itself.
func (p *program) endedBy() (signal int, told bool) {
	if p.handle == nil {
		return 0, false
	}
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if conn.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) }) != nil || err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	status := unix.WaitStatus(info.Exit_code)
	if status.Signaled() {
		return int(status.Signal()), true
	}
	return 0, true
}

func (p *program) measure() measured {
	return measured{cpu: p.group.cpuTime(), peak: p.group.peak(), oomKilled: p.early || p.group.oomKills() > 0 ||
		p.container.v2 && p.oomBefore >= 0 && p.container.oomKills() > p.oomBefore}
}

func procPath(pid int, name string) string { return filepath.Join("/proc", fmt.Sprint(pid), name) }
