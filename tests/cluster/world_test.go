package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/tests/world"
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
	code, err := world.Again(unix.CLONE_NEWNET|unix.CLONE_NEWNS, inWorld+"=1", binaryAt+"="+bin)
	if errors.Is(err, os.ErrPermission) {
		return world.Again(0, inWorld+"=none") // which skips
	}
	return code, err
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
	return errors.Join(world.Up("lo"), world.Up(bridge, gateway+"/24"))
}

// machine is a network namespace with one interface at the bridge.
type machine struct {
	name, ip string
	ns       *os.File
}

// newMachine makes one. Its interface at the bridge has its name.
func newMachine(name, ip string) (_ *machine, err error) {
	m := &machine{name: name, ip: ip}
	err = world.Inside(nil, func(home *os.File) error {
		if err := world.Pair("eth0", name, home, ip+"/24"); err != nil {
			return err
		}
		m.ns, err = world.Open()
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

// close takes the machine away. What runs on it must have ended.
func (m *machine) close() {
	if l, err := netlink.LinkByName(m.name); err == nil {
		_ = netlink.LinkDel(l)
	}
	_ = m.ns.Close()
}

// start starts a program on the machine.
func (m *machine) start(cmd *exec.Cmd) error {
	return world.Inside(m.ns, func(*os.File) error { return cmd.Start() })
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
	if err := world.Inside(m.ns, func(*os.File) (err error) { l, err = net.Listen("tcp", ":80"); return err }); err != nil {
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
