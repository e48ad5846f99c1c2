package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// inWorld says that this process is in the namespaces already.
	inWorld = "CLUSTER_WORLD"
	// binaryAt names a binary that is there already.
	binaryAt = "ROCKPOOL_ORCHESTRATOR"
)

func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	switch {
	case os.Getuid() != 0:
		code = m.Run() // which skips
	case os.Getenv(inWorld) == "":
		code, err = again()
	default:
		if err = begin(); err == nil {
			code = m.Run()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		code = 1
	}
	os.Exit(code)
}

// again builds the orchestrator, for which a network may be needed, and runs this program once more in new namespaces of network and mounts.
func again() (int, error) {
	dir, err := os.MkdirTemp("", "cluster-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	bin := os.Getenv(binaryAt)
	if bin == "" {
		bin = filepath.Join(dir, "orchestrator")
		if out, err := exec.Command("go", "build", "-o", bin, "rockpool/cmd/orchestrator").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("building the orchestrator: %w\n%s", err, out)
		}
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inWorld+"=1", binaryAt+"="+bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			cmd = exec.Command("/proc/self/exe", os.Args[1:]...)
			cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdout, os.Stderr, append(os.Environ(), inWorld+"=none")
			_ = cmd.Run() // which skips
			return cmd.ProcessState.ExitCode(), nil
		}
		return 0, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), err
}

// needWorld skips where there can be none.
func needWorld(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces and sandboxes need root")
	}
	if os.Getenv(inWorld) == "none" {
		t.Skip("this machine gives no new namespaces of network and mounts")
	}
}

const (
	bridge  = "cluster0"
	gateway = "198.18.0.1" // of the range for benchmarks: in no network
)

// begin makes the place that machines are joined in.
func begin() error {
	if os.Getenv(inWorld) == "none" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil {
		return fmt.Errorf("make a bridge: %w", err)
	}
	return errors.Join(up("lo"), up(bridge, gateway+"/24"))
}

func up(name string, addresses ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range addresses {
		n, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, n); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, a, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// machine is a network namespace with one interface at the bridge.
type machine struct {
	name, ip string
	ns       *os.File
}

// newMachine makes one. Its interface at the bridge has its name.
func newMachine(name, ip string) (_ *machine, err error) {
	m := &machine{name: name, ip: ip}
	err = m.inside(true, func(home *os.File) error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: name, PeerNamespace: netlink.NsFd(home.Fd())}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make the interfaces of %s: %w", name, err)
		}
		if err := errors.Join(up("lo"), up("eth0", ip+"/24")); err != nil {
			return err
		}
		m.ns, err = os.Open(here())
		return err
	})
	if err != nil {
		return nil, err
	}
	at, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil, err
	}
	port, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return m, errors.Join(netlink.LinkSetMaster(port, at), netlink.LinkSetUp(port))
}

func here() string { return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()) }

// inside runs f on a thread in the machine's namespace, or a new one.
func (m *machine) inside(fresh bool, f func(home *os.File) error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open(here())
	if err != nil {
		return err
	}
	defer home.Close()
	if fresh {
		err = unix.Unshare(unix.CLONE_NEWNET)
	} else {
		err = unix.Setns(int(m.ns.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network of %s: %w", m.name, err)
	}
	err = f(home)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// close takes the machine away. What runs on it must have ended.
func (m *machine) close() {
	if l, err := netlink.LinkByName(m.name); err == nil {
		_ = netlink.LinkDel(l)
	}
	_ = m.ns.Close()
}

// start starts a program on the machine.
func (m *machine) start(cmd *exec.Cmd) error {
	return m.inside(false, func(*os.File) error { return cmd.Start() })
}

// plug connects the machine, or pulls its cable.
func (m *machine) plug(in bool) error {
	l, err := netlink.LinkByName(m.name)
	if err != nil {
		return err
	}
	if in {
		return netlink.LinkSetUp(l)
	}
	return netlink.LinkSetDown(l)
}

func TestACableThatIsPulledCarriesNothing(t *testing.T) {
	needWorld(t)
	m, err := newMachine("probe", "198.18.0.99")
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	var l net.Listener
	if err := m.inside(false, func(*os.File) (err error) { l, err = net.Listen("tcp", ":80"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reach := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), dialBound)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.ip+":80")
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, in := range []bool{true, false, true} {
		if err := m.plug(in); err != nil {
			t.Fatal(err)
		}
		if !in {
			if reach() == nil {
				t.Error("without a cable the machine is reached")
			}
		} else if err := eventually(t.Context(), 10*time.Second, reach); err != nil { // the bridge takes a moment to notice
			t.Errorf("with a cable the machine is not reached: %v", err)
		}
	}
}
