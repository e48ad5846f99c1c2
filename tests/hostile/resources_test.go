package hostile

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"rockpool/tests/platform"
)

// A program that runs out of memory is killed: its exit code says so. The runner itself may have been lost to it.
const outOfMemory = "exit 137|error: the allocation was OOM Killed"

var resources = []attack{
	{id: "A1", what: "fork bomb", language: "sh", limit: 1,
		program: `:(){ :|:& };: ; while :; do :; done`, want: "timeout"},
	{id: "A2", what: "a daemon that outlives its parent", language: "py", program: `
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for s in range(1, 32):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        os.closerange(0, 100)
        os.execv("/usr/bin/sleep", ["outlive", "1000"])
    os._exit(0)
os.wait()
print("left")
`, want: "exit 0", stdout: "left\n", then: nothingRuns},
	{id: "A3", what: "thread bomb", language: "py", program: `
stop, n = threading.Event(), 0
threading.stack_size(64 << 10)
try:
    while n < 100000:
        threading.Thread(target=stop.wait, daemon=True).start()
        n += 1
except RuntimeError:
    print("bounded" if n < 600 else n)
sys.stdout.flush()
os._exit(0)
`, want: "exit 0", stdout: "bounded\n", then: nothingRuns},
	{id: "A4", what: "pids that change faster than a list of them", language: "c", program: `
int main(void) {
	signal(SIGHUP, SIG_IGN);
	for (int i = 0; i < 50; i++)
		if (fork() == 0) {
			setsid();
			for (;;) {
				pid_t p = fork();
				if (p > 0) _exit(0);
			}
		}
	puts("hopping");
	return 0;
}`, want: "exit 0", stdout: "hopping\n", then: nothingRuns},
	{id: "A5", what: "memory, touched", language: "py", program: `
held = []
while True:
    held.append(b"x" * (1 << 20))
`, want: outOfMemory},
	{id: "A6", what: "memory by way of files in memory", language: "sh",
		program: `cat /dev/zero > /dev/shm/a; cat /dev/zero > /tmp/b; exit 28`, want: outOfMemory + "|exit 28"},
	{id: "A7", what: "page tables: one page in each 2 MB", language: "c", program: `
int main(void) {
	size_t size = 1UL << 40, step = 2UL << 20;
	char *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) return 28;
	madvise(p, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += step) p[i] = 1;
	return 0;
}`, want: outOfMemory + "|exit 28"},
	{id: "A8", what: "32 spinning processes", language: "sh", limit: 1,
		program: `for i in {1..31}; do while :; do :; done & done; while :; do :; done`, want: "timeout"},
	{id: "A9", what: "sleeps for ever", language: "sh", limit: 1, program: `sleep 1000000`, want: "timeout"},
	{id: "A10", what: "stops itself, ignores every signal", language: "sh", limit: 1,
		program: `trap '' HUP INT QUIT TERM; kill -STOP $$; while :; do :; done`, want: "timeout"},
	{id: "A11", what: "endless stdout", language: "sh", limit: 1, program: `yes hostile`, want: "timeout"},
	{id: "A12", what: "endless stderr", language: "sh", limit: 1, program: `yes hostile >&2`, want: "timeout"},
	{id: "A13", what: "both at once, as fast as it goes", language: "sh", limit: 1, program: `cat /dev/zero >&2 & cat /dev/zero`, want: "timeout"},
	{id: "A14", what: "one line without end: NUL, invalid and cut UTF-8", language: "py", program: `
for i in range(64):
    os.write(1, bytes(16384) + b"\xff\xfe\xc0\x80" * 4096 + b"\xf0\x9f\x98")
    os.write(1, b"\x80")
print("end")
`, want: "exit 0", stdout: ".*end\n"},
	{id: "A15", what: "never reads, while the client sends 1 GB", script: flood},
	{id: "A16", what: "one huge file", language: "py", program: `
try:
    os.truncate(os.open("sparse", os.O_CREAT | os.O_RDWR), 1 << 40)
    print("1 TB")
except OSError as e:
    print(errno.errorcode[e.errno])
sys.stdout.flush()
big = os.open("big", os.O_CREAT | os.O_WRONLY)
try:
    while True: os.write(big, bytes(1 << 20))
except OSError as e:
    os._exit(28)
`, want: outOfMemory + "|exit 28|exit 153", stdout: "EFBIG\n"},
	{id: "A17", what: "a million tiny files", language: "py", program: `
try:
    for i in range(1000000): os.close(os.open("f%d" % i, os.O_CREAT | os.O_WRONLY))
    print("a million")
except OSError as e:
    sys.exit(28)
`, want: outOfMemory + "|exit 28", then: listAndDelete(5 * time.Second)},
	{id: "A18", what: "deep paths of long names", language: "py", program: `
os.makedirs("top"); os.chdir("top")
n = 0
try:
    while n < 20000:
        os.mkdir("x" * 255); os.chdir("x" * 255); n += 1
except OSError: pass
`, want: "exit 0", then: listAndDelete(5 * time.Second)},
	{id: "A19", what: "space without a name: fallocate, O_TMPFILE", language: "py", program: `
held = []
try:
    while True:
        fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
        os.posix_fallocate(fd, 0, 16 << 20)
        held.append(fd)
except OSError as e:
    sys.exit(28)
`, want: outOfMemory + "|exit 28"},
	{id: "A20", what: "priorities", language: "c", program: `
int main(void) {
	ATTEMPT(nice(-5) == -1 ? -1 : 0);
	ATTEMPT(sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}));
	ATTEMPT(syscall(SYS_ioprio_set, 1, 0, 1 << 13 | 0));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "A21", what: "a hog of caches and memory bandwidth", language: "c", limit: 2, program: `
enum { SIZE = 24 << 20 };
static void *hog(void *p) {
	for (char *a = p, *b = a + SIZE;; ) memmove(a, b, SIZE), memmove(b, a, SIZE);
}
int main(void) {
	pthread_t t;
	char *p = mmap(0, 4 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 1, 4 * SIZE);
	pthread_create(&t, 0, hog, p);
	hog(p + 2 * SIZE);
}`, want: "timeout"},
	{id: "A22", what: "a storm of fsync", language: "c", limit: 2, program: `
int main(void) {
	for (int i = 0; i < 8; i++)
		if (fork() == 0)
			for (;;) {
				char name[32];
				snprintf(name, sizeof name, "storm%d", i);
				int fd = open(name, O_CREAT | O_RDWR | O_TRUNC | O_SYNC, 0600);
				for (int n = 0; n < 64; n++) { pwrite(fd, name, sizeof name, n * 4096); fsync(fd); }
				sync(); close(fd);
			}
	for (;;) pause();
}`, want: "timeout"},
	{id: "A23", what: "a compile bomb", language: "sh",
		program: `printf '#include "/dev/zero"\n' > a.c; printf 'char a[1UL<<36] = {1};\n' > b.c; gcc -c a.c 2>/dev/null || gcc -c b.c 2>/dev/null || exit 28`,
		want:    outOfMemory + "|exit 28"},
}

// nothingRuns looks for processes that an execution left.
func nothingRuns(ctx context.Context, a *arena, runner string) error {
	out, err := a.sh(ctx, runner, `for p in /proc/[0-9]*; do [ ${p#/proc/} = $$ ] || cat $p/comm 2>/dev/null; done; echo .`)
	if left := strings.TrimSuffix(out, ".\n"); err == nil && strings.TrimSpace(strings.ReplaceAll(left, "cat\n", "")) != "" {
		err = fmt.Errorf("still running: %q", left)
	}
	return err
}

// flood sends far more than is ever read. The verdict must come in time all the same.
func flood(ctx context.Context, a *arena, runner string) error {
	s, err := a.Start(ctx, runner, platform.Execution{Command: "stty raw -echo; exec sleep 1000", TimeLimit: 2})
	if err != nil {
		return err
	}
	defer s.Abort()
	sent := make(chan int, 1)
	go func() {
		chunk, n := strings.Repeat("x", 1<<20), 0
		for n < 1<<30 && s.Send(chunk) == nil {
			n += len(chunk)
		}
		sent <- n
	}()
	start := time.Now()
	o, err := s.Wait(ctx)
	late := time.Since(start) > 8*time.Second
	s.Abort()
	switch n := <-sent; {
	case n > 64<<20:
		return fmt.Errorf("%d MB were taken from a program that reads nothing", n>>20)
	case err != nil:
		return fmt.Errorf("%w (%s)", err, verdictOf(o))
	case verdictOf(o) != "timeout" || late:
		return fmt.Errorf("the verdict is %s after %s", verdictOf(o), time.Since(start))
	}
	return nil
}

// listAndDelete uses the file interface on what a program has left; each call must end in time.
func listAndDelete(bound time.Duration) func(context.Context, *arena, string) error {
	return func(ctx context.Context, a *arena, runner string) error {
		start := time.Now()
		files, err := a.List(ctx, runner, "./", true)
		listed := time.Since(start)
		start = time.Now()
		err = errors.Join(err, a.Copy(ctx, runner, []string{"./*"}))
		deleted := time.Since(start)
		rest, restErr := a.List(ctx, runner, "./", true)
		err = errors.Join(err, restErr)
		if err == nil && (listed > bound*patience || deleted > bound*patience || len(rest) > 0) {
			err = errors.New("listing " + strconv.Itoa(len(files)) + " entries took " + listed.String() + ", deleting " + deleted.String() + ", left " +
				strconv.Itoa(len(rest)))
		}
		return err
	}
}
