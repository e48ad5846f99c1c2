package standin

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What an image of the platform has: a workspace, a user, and the script that makes a process one of that user's.
const image = `set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/u" "$1/w" "$1/m"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/u,workdir=$1/w" "$1/m"
cd "$1/m"
mount -t tmpfs none tmp
chmod 1777 tmp
mkdir workspace
mount -t proc proc proc
mount --rbind /dev dev
echo 'user:x:4242:4242::/workspace:/bin/bash' >>etc/passwd
echo 'user:x:4242:' >>etc/group
echo 'user:*:19000:0:99999:7:::' >>etc/shadow
if [ "$2" = setuser ]; then
	cat >sbin/setuser <<'END'
#!/bin/sh
name=$1
shift
exec setpriv --reuid 4242 --regid 4242 --init-groups env HOME=/workspace USER="$name" UID=4242 "$@"
END
	chmod 755 sbin/setuser
fi
chown 4242:4242 workspace
exec chroot . /bin/sh -c 'cd /workspace; exec sleep infinity'`

// container is a root of its own over that of the machine, with processes of its own. Its shells and tools are those that are installed.
type container struct {
	cmd  *exec.Cmd
	root string // as the machine sees it

	running sync.WaitGroup
}

func boot(dir string, setuser bool) (*container, error) {
	flavour := "bare"
	if setuser {
		flavour = "setuser"
	}
	cmd := exec.Command("/bin/bash", "-c", image, "bash", dir, flavour)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &container{cmd: cmd, root: "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/root"}
	for range 500 {
		if name, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/comm"); err != nil || strings.TrimSpace(string(name)) == "sleep" {
			if err == nil {
				return c, nil
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.stop()
	return nil, errors.New("no container can be made: " + said.String())
}

func (c *container) stop() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.running.Wait()
}

// command is one that runs in the container in a session of its own, as runc has it.
func (c *container) command(tty bool, env []string, argv []string) *exec.Cmd {
	// The shell stays outside: nsenter itself would stop and go on with its child.
	args := []string{"-t", strconv.Itoa(c.cmd.Process.Pid), "-m", "-p", "-r", "-w", "--no-fork", "--", "/bin/bash", "-c", `exec 3>&2 2>/dev/null; "$@" 2>&3 3>&-; exit $?`, "bash", "setsid"}
	if tty {
		args = append(args, "-c")
	}
	args = append(append(append(args, "env", "-i", "-C", "/workspace"), env...), argv...)
	return exec.Command("nsenter", args...)
}

// processes are the names of those that live in it, but for its first.
func (c *container) processes() []string {
	var names []string
	all, _ := filepath.Glob(c.root + "/proc/[0-9]*")
	for _, p := range all {
		stat, err := os.ReadFile(p + "/stat")
		if err != nil || filepath.Base(p) == "1" {
			continue
		}
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if rest := strings.Fields(string(stat[end+1:])); rest[0] != "Z" && rest[0] != "X" {
			names = append(names, filepath.Base(p)+" "+string(stat[open+1:end]))
		}
	}
	return names
}

// cpu is the time that all processes in it have used.
func (c *container) cpu() time.Duration {
	var ticks int64
	all, _ := filepath.Glob(c.root + "/proc/[0-9]*/stat")
	for _, p := range all {
		stat, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{11, 12} {
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
