//go:build linux

// Command init is process 1 of the virtual machine of tests/vm. It makes of an unpacked initramfs what a booted system is to the sandbox, runs the
// program that its arguments name, reports the exit code between markers on the console, and turns the machine off.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	groups = "/sys/fs/cgroup"
	path   = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func main() {
	delegated := flag.Bool("delegated", false, "run the program in a group of its own that it sees as the root, as a container or a service is")
	flag.Parse()
	code, err := boot(*delegated, flag.Args())
	if err != nil {
		fmt.Println("init:", err)
		code = 125
	}
	fmt.Printf("\n=== exit %d ===\n", code)
	unix.Sync()
	fmt.Println("power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func boot(delegated bool, argv []string) (int, error) {
	for _, step := range []func() error{leaveRootfs, mountAll, loadModules, loopbackUp} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	if delegated {
		if err := delegate(); err != nil {
			return 0, err
		}
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return 0, err
	}
	controllers, err := os.ReadFile(groups + "/cgroup.controllers")
	if err != nil {
		return 0, err
	}
	fmt.Printf("\n=== start on Linux %s with %s", unix.ByteSliceToString(name.Release[:]), controllers)
	environment := []string{path, "HOME=/root", "LANG=C.UTF-8"}
	for ; len(argv) > 1 && !strings.HasPrefix(argv[0], "/"); argv = argv[1:] { // NAME=value before the program
		environment = append(environment, argv[0])
	}
	return run(argv, environment)
}

// leaveRootfs puts a bind mount of everything over the root: pivot_root, which each sandbox does, refuses to leave the kernel's first mount.
func leaveRootfs() error {
	if err := unix.Mount("/", "/mnt", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.Chdir("/mnt"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func mountAll() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""}, {"tmpfs", "/tmp", ""}, {"tmpfs", "/run", ""},
		{"cgroup2", groups, "nsdelegate,memory_recursiveprot"}, // systemd's options; they hold for all mounts of it
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// loadModules loads what lies in /modules; the names are numbered in the order of their dependencies.
func loadModules() error {
	files, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// delegate moves this process to a group below the root and makes that group the root of what it sees.
func delegate() error {
	if err := os.WriteFile(groups+"/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0); err != nil {
		return err
	}
	service := groups + "/service"
	if err := os.Mkdir(service, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(service+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return err
	}
	runtime.LockOSThread() // what is unshared belongs to the thread, and the program is started from it
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare the control groups: %w", err)
	}
	if err := unix.Unmount(groups, 0); err != nil {
		return fmt.Errorf("unmount the control groups: %w", err)
	}
	return unix.Mount("cgroup2", groups, "cgroup2", unix.MS_NOSUID, "")
}

// run starts the program and reaps, as process 1 must, whatever ends before it does.
func run(argv, environment []string) (int, error) {
	signal.Ignore(syscall.SIGHUP)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Dir: "/tmp", Env: environment, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && ended != pid:
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}
