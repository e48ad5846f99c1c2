package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/tests/service"
	"rockpool/tests/world"
)

// The suite runs in a network namespace of its own, in which the service is the node of a small world: nothing that it sends, or that is sent to it,
// touches the network of this machine.
const (
	nodeAddress   = "198.51.100.2"
	publicAddress = "203.0.113.10"
	listenerPort  = "9999" // of a service that the node has beside ours
)

// inWorld says that this process is in the namespace already.
const inWorld = "HOSTILE_WORLD"

func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	switch {
	case os.Getuid() != 0 || os.Getenv("HOSTILE_COMPILE") != "":
		code = m.Run()
	case os.Getenv(inWorld) == "":
		code, err = again()
	default:
		if err = world.Up("lo"); err == nil { // most kernels begin a namespace without
			code = m.Run()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		code = 1
	}
	os.Exit(code)
}

// again builds the gateway, for which a network may be needed, and runs this program once more in a new namespace.
func again() (int, error) {
	dir, err := os.MkdirTemp("", "hostile-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	bin, err := service.Build(context.Background(), dir)
	if err != nil {
		return 0, err
	}
	return world.Again(unix.CLONE_NEWNET, inWorld+"=1", "ROCKPOOL_GATEWAY="+bin)
}

// outside is what lies beyond the node: a server on public, private and metadata addresses.
type outside struct {
	mu      sync.Mutex
	reached map[string]int // connections by the address that was called
	packets atomic.Int64
	closers []io.Closer
}

// beyond are the addresses of the world.
var beyond = []string{publicAddress, "203.0.113.11", "169.254.169.254", "10.1.2.3", "192.168.7.7", "172.16.5.5", "100.64.0.1", "100.100.100.200"}

func makeWorld() (_ *outside, err error) {
	w := &outside{reached: map[string]int{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := world.Inside(nil, func(home *os.File) error {
		if err := world.Pair("world0", "node0", home, "198.51.100.1/24"); err != nil {
			return err
		}
		for _, a := range beyond {
			if err := world.Up("world0", a+"/32"); err != nil {
				return err
			}
		}
		return w.serve()
	}); err != nil {
		return nil, err
	}
	if err := world.Up("node0", nodeAddress+"/24"); err != nil {
		return nil, err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("198.51.100.1")}); err != nil {
		return nil, fmt.Errorf("the way into the world: %w", err)
	}
	own, err := net.Listen("tcp", ":"+listenerPort)
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, own)
	go w.accept(own)
	return w, nil
}

// serve listens on all addresses of the namespace that the thread is in.
func (w *outside) serve() error {
	web, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", ":7777")
	if err != nil {
		return errors.Join(err, web.Close())
	}
	w.closers = append(w.closers, web, udp)
	go w.accept(web)
	go func() {
		for b := make([]byte, 2048); ; w.packets.Add(1) {
			if _, _, err := udp.ReadFrom(b); err != nil {
				return
			}
		}
	}()
	return nil
}

// accept answers whoever connects, and notes which address was called.
func (w *outside) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.LocalAddr().String())
		w.mu.Lock()
		w.reached[host]++
		w.mu.Unlock()
		_, _ = io.WriteString(c, "reached") // the client may have gone
		_ = c.Close()
	}
}

// calls is how often an address was called.
func (w *outside) calls(address string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reached[address]
}

func (w *outside) close() {
	for _, c := range w.closers {
		_ = c.Close()
	}
}
