package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"rockpool/tests/platform"
)

var fileSystem = []attack{
	{id: "B1", what: "reads what belongs to the node", language: "sh", program: `
for f in /etc/shadow /etc/gshadow /root/.ssh /root/.bashrc /var/lib/rockpool /etc/ssh /var/log /boot /work "$CANARY" "$PARENT_OF_DATA" /run/docker.sock; do
  [ -e "$f" ] && echo "$f is there"; done
find / -xdev -name 'configuration.yaml' -o -xdev -name '*.db' -path '*raft*' 2>/dev/null | head -5
ls /home | grep -vx user; ls -A /var /root 2>/dev/null | grep -E 'lib/rockpool|log$|\.ssh'; true`, want: "exit 0", stdout: ""},
	{id: "B2", what: "../ and absolute paths in the file interface", script: traverse},
	{id: "B3", what: "links to the node's files, downloaded and written", language: "sh",
		program: `ln -s "$CANARY/file" out; ln -s /etc/shadow shadow; ln -s "$CANARY" dir; ln -s ../../../../../../../../"$CANARY/file" up; ln -s /proc/1/root root`,
		want:    "exit 0", then: followLinks},
	{id: "B4", what: "a directory and a link that change places all the time", language: "c", limit: 4, program: `
int main(void) {
	mkdir("a", 0777); mkdir("a/inner.d", 0777); close(creat("a/file", 0666));
	symlink(getenv("CANARY"), "b");
	puts("go"); fflush(stdout);
	for (;;) syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 2);
}`, want: "timeout", script: whileItSwaps},
	{id: "B5", what: "downloads of what is not a file", language: "py", program: `
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
os.symlink("/dev/zero", "zero"); os.symlink("/proc/self/mem", "mem"); os.symlink("/dev/stdin", "stdin")
`, want: "exit 0", then: noFile},
	{id: "B6", what: "names that try to be something else", language: "py", program: `
names = [b"a\nb", b"q\"'", b"-rf", b"$(id)", "\u202egpj.exe".encode(), b"\xff\xfe", b"back\\slash", b"t\tab", b"\x1b]52;c;eA==\x07", b"{\"x\":1}"]
for n in names: open(n, "w").close()
`, want: "exit 0", then: strangeNames},
	{id: "B8", what: "deletes that try to leave the root", language: "sh",
		program: `ln -s "$CANARY" dir; ln -s / slash; ln -s /usr usr; mkdir sub; ln -s "$CANARY/file" sub/file; ln -s /proc/1/root sub/root`,
		want:    "exit 0", then: deletions},
	{id: "B9", what: "setuid programs", language: "sh", root: true,
		program: `cp /bin/bash b; chown root:root b; chmod 6755 b; cp /usr/bin/id i; chmod 6755 i; echo made`, want: "exit 0", stdout: "made\n",
		then: func(ctx context.Context, a *arena, runner string) error {
			out, err := a.sh(ctx, runner, `./b -pc 'id -u'; ./i -u; id -u`)
			if f := strings.Fields(out); err == nil && (len(f) != 3 || f[0] != f[2] || f[1] != f[2] || f[2] == "0") {
				err = fmt.Errorf("ids %q", f)
			}
			return err
		}},
	{id: "B10", what: "mounts, as root of the runner", language: "c", root: true, program: `
int main(void) {
	ATTEMPT(mount(0, "/", 0, MS_REMOUNT, 0));
	ATTEMPT(mount(0, "/usr", 0, MS_REMOUNT | MS_BIND, 0));
	ATTEMPT(mount("/usr", "/tmp", 0, MS_BIND, 0));
	ATTEMPT(mount("proc", "/tmp", "proc", 0, 0));
	ATTEMPT(umount2("/proc/sys", MNT_DETACH));
	ATTEMPT(umount2("/proc", MNT_DETACH));
	ATTEMPT(syscall(SYS_pivot_root, "/tmp", "/tmp"));
	ATTEMPT(chroot("/tmp"));
	ATTEMPT(syscall(SYS_fsopen, "tmpfs", 0));
	ATTEMPT(syscall(SYS_open_tree, -100, "/", 1));
	ATTEMPT(syscall(SYS_move_mount, -100, "/usr", -100, "/tmp", 0));
	ATTEMPT(syscall(442, -100, "/usr", 0, 0, 0));
	ATTEMPT(open("/usr/bin/attacked", O_CREAT | O_WRONLY, 0755));
	ATTEMPT(mknod("/tmp/disk", S_IFBLK | 0666, 8 << 8));
	return 0;
}`, want: "exit 0", stdout: ""},
	{id: "B12", what: "the supervisor's /proc", language: "sh", root: true,
		program: `for f in root cwd exe fd environ mem maps; do ls /proc/1/$f/ >/dev/null 2>&1 && echo $f; cat /proc/1/$f 2>/dev/null | head -c 10; done; true`,
		want:    "exit 0", stdout: "", then: func(ctx context.Context, a *arena, runner string) error {
			for _, p := range []string{"/proc/1/environ", "/proc/1/root/etc/shadow", "/proc/1/mem", "/proc/self/root/../../etc/shadow", "/proc/1/maps"} {
				if data, err := a.Download(ctx, runner, p); err == nil && len(data) > 0 {
					return fmt.Errorf("%s: %s", p, short(string(data)))
				}
			}
			return nil
		}},
}

// up leads from any directory inside to the root and far beyond.
var up = strings.Repeat("../", 20)

func traverse(ctx context.Context, a *arena, runner string) error {
	file := a.canaries + "/file"
	for _, p := range []string{file, up + file, "." + file, "sub/" + up + file, "//" + file, "/proc/self/cwd/" + up + file} {
		// An earlier round may have made a file of that name inside.
		if data, _ := a.Download(ctx, runner, p); strings.Contains(string(data), a.secret) {
			return fmt.Errorf("download of %s: %s", p, short(string(data)))
		}
		// Writing may make a file of that name inside; unharmed looks at the node's.
		_ = a.Copy(ctx, runner, []string{p}, platform.File{Path: p + "2", Content: []byte("x")}, platform.File{Path: p, Content: []byte("x")})
		if err := a.unharmed(); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

func followLinks(ctx context.Context, a *arena, runner string) error {
	for _, p := range []string{"out", "shadow", "dir/file", "up", "root/etc/shadow", "root" + a.canaries + "/file"} {
		if data, err := a.Download(ctx, runner, p); err == nil {
			return fmt.Errorf("download of %s: %s", p, short(string(data)))
		}
	}
	for _, p := range []string{"out", "up", "dir/file", "dir/new", "root/tmp/new"} {
		_ = a.Copy(ctx, runner, nil, platform.File{Path: p, Content: []byte("x")})
	}
	return a.unharmed()
}

// whileItSwaps uses the file interface while two names change places.
func whileItSwaps(ctx context.Context, a *arena, runner string) error {
	err := await(ctx, func() (bool, error) {
		files, err := a.List(ctx, runner, "./", false)
		for _, f := range files {
			if strings.HasSuffix(f.Name, "b") {
				return true, err
			}
		}
		return false, err
	})
	for range 40 {
		if err != nil {
			return err
		}
		files, _ := a.List(ctx, runner, "./", true)
		for _, f := range files {
			if strings.HasSuffix(f.Name, "/inner") {
				err = fmt.Errorf("a file of the node was listed: %+v", f)
			}
		}
		for _, name := range []string{"a/", "b/"} {
			if data, getErr := a.Download(ctx, runner, name+"file"); getErr == nil && strings.Contains(string(data), a.secret) {
				err = errors.Join(err, errors.New("a file of the node was downloaded"))
			}
			_ = a.Copy(ctx, runner, nil, platform.File{Path: name + "file", Content: []byte("overwritten")})
			_ = a.Copy(ctx, runner, []string{name + "file", name + "dir"})
		}
		err = errors.Join(err, a.unharmed())
	}
	_ = a.Copy(ctx, runner, []string{"./*"})
	return errors.Join(err, a.unharmed())
}

func noFile(ctx context.Context, a *arena, runner string) error {
	for _, p := range []string{"fifo", "socket", "zero", "mem", "stdin", "/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem", "/proc/self/fd/0", "/dev/pts/0", "/dev/stdin"} {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		data, err := a.Download(short, runner, p)
		cancel()
		status, ok := errors.AsType[*platform.StatusError](err)
		if !ok || status.Status != 424 {
			return fmt.Errorf("download of %s: %d bytes, %w", p, len(data), err)
		}
		short, cancel = context.WithTimeout(ctx, 3*time.Second)
		err = a.Copy(short, runner, nil, platform.File{Path: p, Content: []byte("x")})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("writing %s: %w", p, err)
		}
	}
	return nil
}

func strangeNames(ctx context.Context, a *arena, runner string) error {
	status, body, err := a.Do(ctx, "GET", "/runners/"+runner+"/files?path=./", nil)
	if err != nil || status != 200 {
		return fmt.Errorf("status %d: %w", status, err)
	}
	if bytes.ContainsFunc(body, func(c rune) bool { return c < ' ' }) || !utf8.Valid(body) {
		return fmt.Errorf("a raw byte came through: %s", short(string(body)))
	}
	files, err := a.List(ctx, runner, "./", true)
	if err == nil && len(files) != 11 { // and the program itself
		err = fmt.Errorf("%d names: %s", len(files), short(string(body)))
	}
	return err
}

func deletions(ctx context.Context, a *arena, runner string) error {
	for _, p := range []string{"dir/file", "dir/./", "dir/dir", "slash/usr/bin/attr", "sub/root/etc/passwd", "../..", "/", "/..", "/proc", "/dev",
		a.canaries, up + a.canaries, "sub", "./*"} {
		_ = a.Copy(ctx, runner, []string{p})
		if err := a.unharmed(); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	_, err := a.sh(ctx, runner, "test -c /dev/null && test -d /proc/self")
	return err
}
