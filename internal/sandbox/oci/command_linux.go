//go:build linux && cgo

package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// commandTimeout bounds one call of the runtime that does not run a program.
const commandTimeout = 30 * time.Second

// invocation is one call of the runtime. What it says goes to a file in memory: a pipe would be inherited by what it starts,
// and held open.
type invocation struct {
	cmd  *exec.Cmd
	said *os.File
}

// invoke starts the runtime with a list of arguments; no shell sees them. Its standard output is out, nil = nowhere, and the files
// become descriptors from 3 on. With the id of a sandbox it is started in that one's control groups, where the runtime does not
// deal with them itself.
func (r *Runtime) invoke(id string, out *os.File, files []*os.File, args ...string) (*invocation, error) {
	fd, err := unix.MemfdCreate("said", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a memory file: %w", err)
	}
	said := os.NewFile(uintptr(fd), "said")
	const firstFD = 3
	all := slices.Concat(r.kind.global, []string{"--root", r.runtimeRoot()}, args)
	cmd := exec.Command(r.cfg.Program, all...)
	if r.kind.ownGroups {
		var join []*os.File
		if id != "" {
			if join, err = r.groups(groupName(id)).Join(); err != nil {
				return nil, errors.Join(err, said.Close())
			}
		}
		defer func() {
			for _, f := range join {
				_ = f.Close()
			}
		}()
		// Our program enters the groups through the last descriptors, and becomes the runtime.
		cmd.Path = r.program()
		cmd.Args = slices.Concat([]string{insidePath, strconv.Itoa(firstFD + len(files)), strconv.Itoa(len(join)), r.hidden(), r.cfg.Program}, all)
		files = slices.Concat(files, join)
	}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr = said
	if out != nil {
		cmd.Stdout = out
	}
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", r.cfg.Name, err), said.Close())
	}
	return &invocation{cmd, said}, nil
}

// hidden is what the runtime must not see mounted; "" = nothing. crun stops on machines that have both versions of control
// groups, whether it deals with them or not.
func (r *Runtime) hidden() string {
	const unified = "/sys/fs/cgroup/unified"
	if r.kind.oneCgroupVersion && mountedAt(unified) {
		return unified
	}
	return ""
}

// wait waits for the end of the call and gives what it said when it failed.
func (i *invocation) wait() error {
	err := i.cmd.Wait()
	defer func() { _ = i.said.Close() }()
	if err == nil {
		return nil
	}
	text := make([]byte, 4096)
	n, _ := i.said.ReadAt(text, 0)
	if said := strings.Fields(strings.ToValidUTF8(string(text[:n]), "?")); len(said) > 0 {
		return fmt.Errorf("%w: %s", err, strings.Join(said, " "))
	}
	return err
}

// call runs the runtime to its end, outside of all sandboxes.
func (r *Runtime) call(ctx context.Context, args ...string) error {
	return r.callIn(ctx, "", nil, args...)
}

// boot has the runtime start a container, and returns when its process 1 is our program. The runtime returns when that is about to be executed, and until
// then the kernel lets nobody of the container's user namespace look at process 1: crun would start no program in it (containers/crun, issue 1264). Our
// program closes what it inherits, so the end of a pipe tells of it.
func (r *Runtime) boot(ctx context.Context, id string, args ...string) error {
	if r.kind.ownKernel { // which has started the program when it answers, and asks nobody who may enter
		return r.callIn(ctx, id, nil, args...)
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ours.Close() }()
	err = r.callIn(ctx, id, theirs, args...)
	_ = theirs.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ours.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.Copy(io.Discard, ours); err != nil {
		return fmt.Errorf("%s: process 1 of the container did not come up: %w", r.cfg.Name, cmp.Or(context.Cause(ctx), err))
	}
	return nil
}

// callIn runs the runtime to its end in a sandbox's control groups: what it starts stays there, and has out as its standard output.
func (r *Runtime) callIn(ctx context.Context, id string, out *os.File, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	i, err := r.invoke(id, out, nil, args...)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = i.cmd.Process.Kill() })
	defer stop()
	if err := i.wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w", r.cfg.Name, err)
	}
	return nil
}

// version asks the program who it is: whatever cannot answer that is no OCI runtime.
func version(program string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	text, _ := io.ReadAll(io.LimitReader(out, 64<<10))
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s --version: %w", program, err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	fields := strings.Fields(first) // "runc version 1.1.5", "crun version 1.8.1", "runsc version release-2026"
	if len(fields) < 3 || fields[1] != "version" {
		return "", fmt.Errorf("%s --version answered %q, which no OCI runtime does", program, first)
	}
	return fields[2], nil
}
