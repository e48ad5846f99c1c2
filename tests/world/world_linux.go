package world

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Again runs this program once more, with its arguments, in the new namespaces that flags ask for and with env added to its environment, and returns its exit
// code. The error wraps os.ErrPermission where this machine gives none.
func Again(flags uintptr, env ...string) (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	signal.Stop(signals)
	close(signals)
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), err
}

// Up sets an interface up, with addresses such as 198.18.0.1/24.
func Up(name string, addresses ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		if err == nil {
			err = netlink.AddrAdd(l, a)
		}
		if err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, text, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// Pair makes an interface with addresses in the namespace of the calling thread, and its other end as peer in home.
func Pair(name, peer string, home *os.File, addresses ...string) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer, PeerNamespace: netlink.NsFd(home.Fd())}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make the interfaces %s and %s: %w", name, peer, err)
	}
	return errors.Join(Up("lo"), Up(name, addresses...))
}

// Open opens the network namespace of the calling thread, which must be locked to its goroutine.
func Open() (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
}

// Inside runs f on a thread in a network namespace, nil being a new one. home is the namespace that the caller is in, and is closed afterwards.
func Inside(ns *os.File, f func(home *os.File) error) error {
	runtime.LockOSThread()
	home, err := Open()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if ns == nil {
		err = unix.Unshare(unix.CLONE_NEWNET)
	} else {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	err = f(home)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}
