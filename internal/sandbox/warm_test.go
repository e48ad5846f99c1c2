//go:build linux && cgo

package sandbox_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

// learnersSpec is what an execution of the gateway is like.
func learnersSpec(line string) sandbox.ExecSpec {
	return sandbox.ExecSpec{Argv: []string{"/bin/bash", "-c", line}, User: "user", TTY: true,
		Env: []string{"HOME=/home/user", "USER=user", "LOGNAME=user", "CODEOCEAN=true"}}
}

func learnersWarmUp(imports ...string) sandbox.WarmSpec {
	spec := learnersSpec("")
	return sandbox.WarmSpec{Command: []string{"python3"}, Imports: imports, Env: spec.Env, User: spec.User, TTY: spec.TTY}
}

// needsPython skips where a program that waits is not to be had.
func needsPython(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("this machine has no /usr/bin/python3")
	}
}

func put(t testing.TB, s *sandbox.Sandbox, files map[string]string) {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Files().Apply(t.Context(), nil, &archive); err != nil {
		t.Fatal(err)
	}
}

// warmUp starts an interpreter that waits. It may have to wait itself until what was before is gone.
func warmUp(t testing.TB, s *sandbox.Sandbox, spec sandbox.WarmSpec) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		err := s.Warm(ctx, spec)
		if err == nil {
			return
		}
		if !errors.Is(err, sandbox.ErrBusy) {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
}

// Whatever a program can see of how it was started is the same whether an interpreter waited for it or not.
func TestWarmIsNotToBeTold(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	programs := map[string]struct {
		code, args, input string
		name              string // "" = program.py
	}{
		"arguments":           {code: "import sys; print(sys.argv, sys.orig_argv, __file__, sys.path, sys.executable, sys.prefix)", args: " a 'b c' \"\" -x --y=1 %z"},
		"in a directory":      {name: "sub/p.py", code: "import sys; print(sys.argv, __file__, sys.path[0]); import beside; print(beside.x)"},
		"up and down":         {name: "sub/../program.py", code: "import sys; print(sys.argv, __file__, sys.path[0])"},
		"absolute":            {name: "/workspace/program.py", code: "import sys; print(sys.argv, __file__, sys.path[0])"},
		"through a link":      {name: "link.py", code: "import sys; print(sys.argv, __file__, sys.path[0])"},
		"module":              {code: "print(list(globals())); print({k: v for k, v in globals().items() if k not in ('__loader__', '__builtins__')}); print(type(__loader__), __loader__.path, __loader__.name, __builtins__.__name__)"},
		"modules":             {code: "import sys; print(sorted(sys.modules)); print(sorted(sys.path_importer_cache)); print(sys.meta_path, sys.path_hooks)"},
		"all of sys":          {code: "import sys; [print(k, v if isinstance(v, (str, int, tuple, list, type(sys.flags), dict)) and k not in ('modules', 'path_importer_cache', '_git') else type(v)) for k, v in sorted(vars(sys).items())]"},
		"environment":         {code: "import os; print(list(os.environ.items())); import subprocess; print(subprocess.run(['env'], capture_output=True).stdout)"},
		"descriptors":         {code: "import os; print(os.listdir('/proc/self/fd'), [os.get_inheritable(n) for n in range(3)]); import subprocess; print(subprocess.run(['ls', '/proc/self/fd'], capture_output=True).stdout)"},
		"command line":        {code: "print(open('/proc/self/cmdline', 'rb').read(), open('/proc/self/comm').read(), __import__('os').readlink('/proc/self/exe'))", args: " one two"},
		"what ps shows":       {code: "import subprocess; print(subprocess.run(['ps', '-o', 'args=', '-C', 'python3'], capture_output=True).stdout)", args: " one"},
		"terminal":            {code: "import os, sys, fcntl, termios, struct; print(os.ttyname(0), os.isatty(0), os.isatty(1), os.isatty(2), termios.tcgetattr(0), struct.unpack('4H', fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))), open('/dev/tty').name)"},
		"streams":             {code: "import sys; [print(s.encoding, s.errors, s.line_buffering, s.write_through, s.name, s.mode, s.fileno(), s.newlines) for s in (sys.stdin, sys.stdout, sys.stderr)]"},
		"unbuffered writes":   {code: "import os, sys; print('first'); os.write(1, b'second\\n'); print('third', end=''); os.write(1, b'fourth\\n')"},
		"stdin":               {code: "import sys; print(input('name? ')); print(sys.stdin.readline()); print(sys.stdin.read())", input: "me\nyou\nrest\n\x04"},
		"limits":              {code: "import resource as r; print([r.getrlimit(getattr(r, n)) for n in sorted(dir(r)) if n.startswith('RLIMIT')])"},
		"signals":             {code: "import signal; print([(n, signal.getsignal(n)) for n in range(1, 65) if n not in (32, 33)], signal.pthread_sigmask(0, [])); print([l for l in open('/proc/self/status') if l.startswith(('Sig', 'Shd', 'Cap', 'NoNewPrivs', 'Seccomp', 'Threads', 'Groups', 'Uid', 'Gid', 'Umask'))][:-1])"},
		"sessions":            {code: "import os; me = os.getpid(); print(os.getsid(0) == me, os.getpgid(0) == me, os.getpgrp() == me, os.tcgetpgrp(0) == me, os.getppid(), os.getpriority(0, 0), os.nice(0), os.sched_getaffinity(0))"},
		"user":                {code: "import os, getpass; print(os.getresuid(), os.getresgid(), os.getgroups(), getpass.getuser(), os.path.expanduser('~'), os.getcwd(), oct(os.umask(0)))"},
		"groups":              {code: "import re; print(re.sub(r'[xw]-[a-z0-9-]+', 'X', open('/proc/self/cgroup').read())); print(open('/proc/self/oom_score_adj').read())"},
		"exit 7":              {code: "import sys; sys.exit(7)"},
		"exit with a text":    {code: "import sys; sys.exit('a text')"},
		"exit nothing":        {code: "raise SystemExit"},
		"os exit":             {code: "import os; print('kept'); os._exit(9)"},
		"exit 256":            {code: "import sys; sys.exit(256)"},
		"killed":              {code: "import os; os.kill(os.getpid(), 9)"},
		"aborted":             {code: "import os; os.abort()"},
		"interrupted":         {code: "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('never'); import time; time.sleep(1)"},
		"terminated":          {code: "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"},
		"fault":               {code: "import ctypes; ctypes.string_at(0)"},
		"fault handler":       {code: "import faulthandler, re, sys; faulthandler.enable(); import os; os.kill(os.getpid(), 6)"},
		"exception":           {code: "def f(n):\n    return 1 / n\n\nf(0)\n"},
		"exceptions":          {code: "try:\n    {}['x']\nexcept KeyError as e:\n    raise ValueError('bad') from e\n"},
		"syntax error":        {code: "print(1\nx = = 2\n"},
		"tabs":                {code: "if 1:\n\tx = 1\n        y = 2\n"},
		"null byte":           {code: "print(1)\nx = 1\x00\n"},
		"empty":               {code: ""},
		"encoding":            {code: "# -*- coding: latin-1 -*-\nprint('\xe9')\n"},
		"bad encoding":        {code: "# -*- coding: nothing -*-\n"},
		"byte order mark":     {code: "\ufeffprint('ok')"},
		"unicode":             {code: "print('größe → 漢字')"},
		"missing":             {name: "missing.py"},
		"a directory":         {name: "package"},
		"an archive":          {name: "broken.zip", code: "PK\x03\x04"},
		"not readable":        {name: "/etc/shadow-not"},
		"recursion":           {code: "import sys\nd = 0\ndef f():\n    global d\n    d += 1\n    f()\ntry:\n    f()\nexcept RecursionError as e:\n    print(d, e, sys.getrecursionlimit())"},
		"stack":               {code: "import traceback, sys, inspect; traceback.print_stack(); print(sys._getframe().f_back, len(inspect.stack()), inspect.stack()[0].filename)"},
		"warnings":            {code: "import warnings; print(warnings.filters); warnings.warn('mind'); warnings.warn('old', DeprecationWarning, stacklevel=2)"},
		"at exit":             {code: "import atexit; atexit.register(print, 'bye'); print('hello')"},
		"at exit, exception":  {code: "import atexit; atexit.register(print, 'bye'); raise RuntimeError('x')"},
		"threads":             {code: "import threading; print(threading.current_thread(), threading.main_thread() is threading.current_thread(), threading.active_count()); t = threading.Thread(target=print, args=('in a thread',)); t.start(); t.join(); print(threading.enumerate()[0].name)"},
		"a thread at the end": {code: "import threading, time\ndef f():\n    time.sleep(0.05); print('late')\nthreading.Thread(target=f).start()"},
		"hook in a thread":    {code: "import threading; t = threading.Thread(target=lambda: 1 / 0, name='T'); t.start(); t.join()"},
		"processes, forked":   {code: "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n    with m.get_context('fork').Pool(2) as p: print(p.map(f, range(4)))"},
		"processes, spawned":  {code: "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n    with m.get_context('spawn').Pool(2) as p: print(p.map(f, range(4)))"},
		"fork":                {code: "import os\np = os.fork()\nif p == 0:\n    os._exit(5)\nprint(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))"},
		"itself again":        {code: "import sys, os\nif len(sys.argv) < 2: os.execv(sys.executable, sys.orig_argv + ['again'])\nprint(sys.argv, sys.orig_argv)"},
		"subprocess":          {code: "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv, sys.path)'], capture_output=True))"},
		"pickles":             {code: "import pickle\nclass C:\n    def __init__(s, x): s.x = x\nprint(pickle.loads(pickle.dumps(C(3))).x, C.__module__, pickle.dumps(C))"},
		"data classes":        {code: "import dataclasses, typing\n@dataclasses.dataclass\nclass C:\n    x: 'int' = 1\nprint(C(), typing.get_type_hints(C), __annotations__ if '__annotations__' in globals() else None)"},
		"annotations":         {code: "x: int = 1\nprint(__annotations__)"},
		"main again":          {code: "import __main__, sys; print(__main__.__dict__ is globals(), sys.modules['__main__'] is __main__)"},
		"import lib":          {code: "import importlib.util; print(importlib.util.find_spec('json'), __spec__); import json, ctypes, random, zlib; print(ctypes.CDLL(None).getpid() > 0, zlib.crc32(b'x'))"},
		"zip imports":         {code: "import zipimport, zipfile; z = zipfile.ZipFile('/tmp/m.zip', 'w'); z.writestr('inzip.py', 'x = 5'); z.close(); import sys; sys.path.insert(0, '/tmp/m.zip'); import inzip; print(inzip.x, inzip.__file__)"},
		"a site of its own":   {code: "import site; print(site.getsitepackages(), site.USER_SITE, site.ENABLE_USER_SITE, site.PREFIXES); print(exit, quit, copyright.__class__)"},
		"hash seed":           {code: "import sys; print(sys.flags.hash_randomization, sys.hash_info)"},
		"async":               {code: "import asyncio\nasync def f():\n    p = await asyncio.create_subprocess_exec('echo', 'sub', stdout=-1)\n    print((await p.communicate())[0])\nasyncio.run(f())"},
		"garbage":             {code: "import gc; print(gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(), gc.garbage)"},
		"profile":             {code: "import sys, threading; print(sys.gettrace(), sys.getprofile(), sys.getswitchinterval(), sys.is_finalizing(), sys.gettotalrefcount() if hasattr(sys, 'gettotalrefcount') else 0)"},
		"curses size":         {code: "import shutil, os; print(shutil.get_terminal_size((1, 2)), os.environ.get('COLUMNS'))"},
		"broken pipe":         {code: "import os, sys; r, w = os.pipe(); os.close(r); os.write(w, b'x')"},
		"closed output":       {code: "import sys; sys.stdout.close(); print('x', file=sys.stderr)"},
		"locale":              {code: "import locale, sys, codecs; print(locale.getlocale(), locale.getpreferredencoding(False), sys.getfilesystemencoding(), sys.getdefaultencoding(), locale.setlocale(locale.LC_ALL))"},
		"memory":              {code: "import mmap; m = mmap.mmap(-1, 4096); x = bytearray(50 << 20); print(len(x)); import ctypes; f = ctypes.CDLL(None).sbrk; f.restype = ctypes.c_void_p; a = f(4096); print(f(0) - a)"},
		"its own environ":     {code: "print(open('/proc/self/environ', 'rb').read())"},
	}
	addresses := regexp.MustCompile(`0x[0-9a-f]+`)
	names := regexp.MustCompile(`\b(Thread-|[0-9]{4,})`)
	put(t, s, map[string]string{"sub/beside.py": "x = 3", "package/__main__.py": "import sys; print(sys.argv, __file__, __package__, sys.path[0])"})
	if o := shell(t, s, "user", "ln -s sub/target.py link.py"); o.ExitCode != 0 {
		t.Fatal(o)
	}
	for title, p := range programs {
		t.Run(title, func(t *testing.T) {
			name := p.name
			if name == "" {
				name = "program.py"
			}
			target := name
			if name == "link.py" {
				target = "sub/target.py"
			}
			if p.code != "" || p.name == "" {
				put(t, s, map[string]string{strings.TrimPrefix(target, "./"): p.code, "program.py": p.code})
			}
			var seen [2]outcome
			for i := range seen {
				if i == 1 {
					warmUp(t, s, learnersWarmUp())
				}
				seen[i] = collect(t, begin(t, s, learnersSpec("python3 "+name+p.args)), p.input)
				if seen[i].Warm != (i == 1) {
					t.Fatalf("run %d took over: %v", i, seen[i].Warm)
				}
				for _, text := range []*string{&seen[i].stdout, &seen[i].stderr} {
					*text = names.ReplaceAllString(addresses.ReplaceAllString(*text, "0x"), "N")
				}
			}
			cold, warm := seen[0], seen[1]
			if cold.stdout != warm.stdout || cold.stderr != warm.stderr || cold.ExitCode != warm.ExitCode || cold.Signal != warm.Signal || cold.Verdict != warm.Verdict {
				t.Errorf("cold: %d %d %s\n%s\n%s\nwarm: %d %d %s\n%s\n%s", cold.ExitCode, cold.Signal, cold.Verdict, cold.stdout, cold.stderr,
					warm.ExitCode, warm.Signal, warm.Verdict, warm.stdout, warm.stderr)
			}
			if len(cold.stdout)+len(cold.stderr)+cold.ExitCode == 0 && title != "empty" && title != "exit nothing" && title != "exit 256" {
				t.Error("the program says nothing: it compares nothing")
			}
		})
	}
}

// Options of the interpreter are those of the warm-up, and count.
func TestWarmWithOptions(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{"p.py": "import sys; print(sys.flags, sys.orig_argv, sys.warnoptions, sys._xoptions, sys.stdout.write_through, sys.path, open('/proc/self/cmdline').read())"})
	for _, options := range []string{"-u", "-B -O", "-X utf8 -W error", "-s", "-P"} {
		var seen [2]outcome
		for i := range seen {
			if i == 1 {
				warm := learnersWarmUp()
				warm.Command = append(warm.Command, strings.Fields(options)...)
				warmUp(t, s, warm)
			}
			seen[i] = collect(t, begin(t, s, learnersSpec("python3 "+options+" p.py x")), "")
		}
		if !seen[1].Warm || seen[0].stdout != seen[1].stdout || seen[0].stderr != seen[1].stderr || seen[0].ExitCode != 0 {
			t.Errorf("%s: cold %+v, warm %+v", options, seen[0], seen[1])
		}
	}
	for _, options := range []string{"-I", "-E", "-S"} { // by which Python does not come to the place where it would wait
		warm := learnersWarmUp()
		warm.Command = append(warm.Command, options)
		if err := s.Warm(t.Context(), warm); err == nil || errors.Is(err, sandbox.ErrBusy) {
			t.Errorf("%s: %v", options, err)
		}
		if o := collect(t, begin(t, s, learnersSpec("python3 "+options+" p.py")), ""); o.Warm || o.ExitCode != 0 {
			t.Errorf("%s: %+v", options, o)
		}
	}
}

// Nothing of chance is shared between two programs that waited.
func TestWarmIsAsRandom(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{"p.py": "import random, uuid, os, secrets, tempfile; print(hash('x'), random.random(), uuid.uuid4(), os.urandom(4).hex(), secrets.token_hex(4), id(object()) >> 12, tempfile.mktemp(), sep='\\n')"})
	seen := map[string]bool{}
	for range 3 {
		warmUp(t, s, learnersWarmUp("random", "uuid", "tempfile"))
		o := collect(t, begin(t, s, learnersSpec("python3 p.py")), "")
		if !o.Warm {
			t.Fatal("it was started anew")
		}
		lines := strings.Fields(o.stdout)
		if len(lines) != 7 {
			t.Fatalf("%q", lines)
		}
		for _, l := range lines {
			if seen[l] {
				t.Errorf("%s comes again", l)
			}
			seen[l] = true
		}
	}
}

// What does not fit starts as ever, and gives the same.
func TestWarmFallsBack(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{"p.py": "print('ran')", "sub/p.py": "print('ran')", "shadow/p.py": "import colorsys; print(colorsys.x)", "shadow/colorsys.py": "x = 'ran'", "long/p.py": "print('ran')"})
	line := func(text string) func(*sandbox.ExecSpec) { return func(e *sandbox.ExecSpec) { e.Argv[2] = text } }
	for title, edit := range map[string]func(*sandbox.ExecSpec){
		"other words":           line("python3 -u p.py"),
		"a command":             line("python3 -c 'print(\"ran\")'"),
		"a module":              line("python3 -m p"),
		"two commands":          line("python3 p.py; true"),
		"a pipe":                line("python3 p.py | cat"),
		"an expansion":          line("python3 p.py $HOME"),
		"a pattern":             line("python3 p.p*"),
		"a tilde":               line("python3 p.py ~"),
		"a variable":            line("X=1 python3 p.py"),
		"a comment":             line("python3 p.py # x"),
		"braces":                line("python3 p.py {a,b}"),
		"a redirection":         line("python3 p.py 2>/dev/null"),
		"another line":          line("python3 p.py\ntrue"),
		"a name beyond ASCII":   line("python3 p.py ä"),
		"many arguments":        line("python3 p.py " + strings.Repeat("a ", 2000)),
		"a dot and a slash":     line("python3 ./p.py"),
		"another interpreter":   line("/usr/bin/python3 p.py"),
		"a hidden module":       line("python3 shadow/p.py"),
		"another user":          func(e *sandbox.ExecSpec) { e.User = "root" },
		"another directory":     func(e *sandbox.ExecSpec) { e.Dir = "/workspace/sub" },
		"no terminal":           func(e *sandbox.ExecSpec) { e.TTY = false },
		"merged":                func(e *sandbox.ExecSpec) { e.MergeStderr = true },
		"another shell":         func(e *sandbox.ExecSpec) { e.Argv[0] = "/usr/bin/bash" },
		"no shell":              func(e *sandbox.ExecSpec) { e.Argv = []string{"python3", "p.py"} },
		"more variables":        func(e *sandbox.ExecSpec) { e.Env = append(e.Env, "PYTHONHASHSEED=0") },
		"fewer variables":       func(e *sandbox.ExecSpec) { e.Env = e.Env[:3] },
		"other values":          func(e *sandbox.ExecSpec) { e.Env[0] = "HOME=/tmp" },
		"what it leaves behind": func(e *sandbox.ExecSpec) { e.Background = true },
	} {
		t.Run(title, func(t *testing.T) {
			warmUp(t, s, learnersWarmUp("colorsys"))
			spec := learnersSpec("python3 p.py")
			edit(&spec)
			o := collect(t, begin(t, s, spec), "")
			if o.Warm {
				t.Error("took over what is something else")
			}
			if strings.TrimSpace(strings.ReplaceAll(o.stdout, "\r", "")) != "ran" {
				t.Errorf("%+v", o)
			}
		})
	}
	t.Run("new modules", func(t *testing.T) {
		if o := shell(t, s, "user", "mkdir -p $(HOME=/home/user python3 -m site --user-site)"); o.ExitCode != 0 {
			t.Fatal(o)
		}
		warmUp(t, s, learnersWarmUp())
		put(t, s, map[string]string{"/home/user/.local/lib/" + userSite(t, s) + "/site-packages/usercustomize.py": "print('customised')"})
		if o := collect(t, begin(t, s, learnersSpec("python3 p.py")), ""); o.Warm || !strings.Contains(o.stdout, "customised") {
			t.Errorf("%+v", o)
		}
	})
}

func userSite(t *testing.T, s *sandbox.Sandbox) string {
	return strings.TrimSpace(run(t, s, "python3", "-c", "import sys; print('python%d.%d' % sys.version_info[:2])").stdout)
}

// An interpreter that waits is held to the limits of the execution that takes it over, and counted as its.
func TestWarmIsHeldToLimits(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{
		"sleep.py": "import time; time.sleep(100)", "spin.py": "while True: pass", "print.py": "while True: print('x' * 1000)",
		"eat.py": "x = bytearray(900 << 20)", "leave.py": "import subprocess; subprocess.Popen(['setsid', 'sleep', '1000']); print('left')",
	})
	for program, test := range map[string]struct {
		edit func(*sandbox.ExecSpec)
		want sandbox.Verdict
	}{
		"sleep": {func(e *sandbox.ExecSpec) { e.TimeLimit = 200 * time.Millisecond }, sandbox.VerdictTime},
		"spin":  {func(e *sandbox.ExecSpec) { e.CPULimit = 300 * time.Millisecond }, sandbox.VerdictCPU},
		"print": {func(e *sandbox.ExecSpec) { e.OutputLimit = 5000 }, sandbox.VerdictOutput},
		"eat":   {func(*sandbox.ExecSpec) {}, sandbox.VerdictMemory},
		"leave": {func(*sandbox.ExecSpec) {}, sandbox.VerdictExit},
	} {
		warmUp(t, s, learnersWarmUp())
		spec := learnersSpec("python3 " + program + ".py")
		test.edit(&spec)
		o := collect(t, begin(t, s, spec), "")
		if !o.Warm || o.Verdict != test.want {
			t.Errorf("%s: %+v", program, o.Result)
		}
		if o.PeakMemory != 0 && o.PeakMemory < 3<<20 {
			t.Errorf("%s: an interpreter in %d bytes", program, o.PeakMemory)
		}
		if spec.OutputLimit > 0 && o.OutputBytes != spec.OutputLimit {
			t.Errorf("%s: %d bytes", program, o.OutputBytes)
		}
	}
	if o := run(t, s, "bash", "-c", "ps ax | grep -c '[s]leep'"); strings.TrimSpace(o.stdout) != "0" {
		t.Errorf("left: %q", o.stdout)
	}
}

// The interpreter is the tenant's to damage, by what the tenant can write before its start: nothing but that tenant's programs may suffer, and never the node.
func TestWarmInterpretersThatAreHostile(t *testing.T) {
	needsPython(t)
	for title, code := range map[string]string{
		"dies":               "import os; os._exit(0)",
		"never answers":      "import time; time.sleep(1000)",
		"floods":             "import os\nwhile True: os.write(4, b'R' * 1000)",
		"says other things":  "import os; os.write(4, b'X' * 16); import time; time.sleep(1000)",
		"claims to be ready": "import os; os.write(4, b'R'); os.read(4, 10); os.read(4, 100000); os._exit(3)",
		"ready, then silent": "import os, time; os.write(4, b'R'); time.sleep(1000)",
		"stops itself":       "import os, signal; os.write(4, b'R'); os.kill(os.getpid(), signal.SIGSTOP)",
		"closes":             "import os, time; os.write(4, b'R'); os.close(4); time.sleep(1000)",
		"forks without end":  "import os\nos.write(4, b'R')\nwhile True:\n    try: os.fork()\n    except OSError: pass",
		"leaves its session": "import os, time\nos.write(4, b'R')\nif os.fork(): time.sleep(1000)\nos.setsid()\nif os.fork(): os._exit(0)\ntime.sleep(1000)",
		"sends descriptors":  "import os, socket, array, time\ns = socket.socket(fileno=os.dup(4))\ns.sendmsg([b'R'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2] * 60))])\ntime.sleep(1000)",
		"writes before":      "import os; os.write(1, b'not of the program'); os.write(2, b'nor this')",
	} {
		t.Run(title, func(t *testing.T) {
			s := create(t, newRuntime(t))
			put(t, s, map[string]string{"p.py": "print('ran')", "/home/user/hostile.py": code})
			spec := learnersSpec("python3 p.py")
			spec.Env = append(spec.Env, "PYTHONPLATLIBDIR=lib")
			put(t, s, map[string]string{"/home/user/.local/lib/" + userSite(t, s) + "/site-packages/hostile.pth": "import os; exec(open('/home/user/hostile.py').read()) if os.environ.get('PYTHONPATH') else None\n"})
			warm := learnersWarmUp()
			warm.Env = spec.Env
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			warmErr := s.Warm(ctx, warm)
			cancel()
			start := time.Now()
			o := collect(t, begin(t, s, spec), "")
			if o.Warm || strings.TrimSpace(o.stdout) != "ran" || o.stderr != "" || o.ExitCode != 0 {
				t.Errorf("warm-up %v; %+v", warmErr, o)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if o := run(t, s, "bash", "-c", "ps ax | grep -c '[p]ython'"); strings.TrimSpace(o.stdout) != "0" {
				t.Errorf("left: %q", o.stdout)
			}
		})
	}
}

// No program of the tenant's ever runs beside an interpreter that waits: it could change what the next program finds, and live on in it beyond its own end.
func TestNothingRunsBesideOneThatWaits(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{"p.py": "print('ran')"})
	warmUp(t, s, learnersWarmUp())
	// One that has ended may not have been waited for yet: it runs no more.
	if o := shell(t, s, "user", "ps ax -o stat=,args= | grep -v ^Z | grep -c '[p]ython'"); strings.TrimSpace(o.stdout) != "0" {
		t.Errorf("an interpreter waits beside a program: %q", o.stdout)
	}
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"sleep", "100"}, User: "user"})
	if err := s.Warm(t.Context(), learnersWarmUp()); !errors.Is(err, sandbox.ErrBusy) {
		t.Errorf("a warm-up beside a program: %v", err)
	}
	_ = e.Kill()
	<-e.Done()
	background := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "sleep 1000 >/dev/null 2>&1 &"}, User: "user", Background: true})
	collect(t, background, "")
	if err := s.Warm(t.Context(), learnersWarmUp()); !errors.Is(err, sandbox.ErrBusy) {
		t.Errorf("a warm-up beside a service: %v", err)
	}
}

// Start, use and end at the same time leave nothing and confuse nothing.
func TestWarmUpsThatMeetPrograms(t *testing.T) {
	needsPython(t)
	r := newRuntime(t)
	for i := range 12 {
		s := create(t, r)
		put(t, s, map[string]string{"p.py": "print('ran')"})
		var warming sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		warming.Go(func() { _ = s.Warm(ctx, learnersWarmUp()) })
		<-time.After(time.Duration(i) * 3 * time.Millisecond) // where in its start it is met
		if i%3 == 2 {
			if err := s.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		} else if o := collect(t, begin(t, s, learnersSpec("python3 p.py")), ""); strings.TrimSpace(o.stdout) != "ran" || o.ExitCode != 0 {
			t.Errorf("%d: %+v", i, o)
		}
		warming.Wait()
		cancel()
	}
}

// A later process of the node ends an interpreter that waits: it has lost what it could be told by.
func TestWarmEndsWithTheNode(t *testing.T) {
	needsPython(t)
	dir, parent := t.TempDir(), fmt.Sprintf("rockpool-test-warm-%d", serial.Add(1))
	first := openRuntime(t, dir, parent)
	s, err := first.Create(t.Context(), sandbox.Spec{ID: "stays", Root: hostRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, map[string]string{"p.py": "print('ran')"})
	warmUp(t, s, learnersWarmUp())
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := openRuntime(t, dir, parent)
	again, err := second.Attach(t.Context(), "stays")
	if err != nil {
		t.Fatal(err)
	}
	warmUp(t, again, learnersWarmUp())
	if o := collect(t, begin(t, again, learnersSpec("python3 p.py")), ""); !o.Warm || strings.TrimSpace(o.stdout) != "ran" {
		t.Errorf("%+v", o)
	}
	if err := again.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestWarmUpsThatAreRefused(t *testing.T) {
	s := create(t, newRuntime(t))
	for _, spec := range []sandbox.WarmSpec{
		{}, {Command: []string{"ruby"}}, {Command: []string{"python3;reboot"}}, {Command: []string{"python3", "$(reboot)"}}, {Command: []string{"python3", ""}},
		{Command: []string{"python3"}, Imports: []string{"os; x"}}, {Command: []string{"python3"}, Imports: []string{""}},
		{Command: []string{"python3"}, Env: []string{"BASH_ENV=/tmp/x"}}, {Command: []string{"python3"}, Env: []string{"PYTHONPATH=/x"}},
	} {
		if err := s.Warm(t.Context(), spec); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

// cpu gives the CPU time that was used since the call before: inside a sandbox, and by everything, the node's part of it and the process that measures too.
func cpu(b *testing.B, s *sandbox.Sandbox) func() (inside, all time.Duration) {
	b.Helper()
	read := func() (inside, node time.Duration) {
		u, err := s.Usage()
		if err != nil {
			b.Fatal(err)
		}
		var self unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
			b.Fatal(err)
		}
		return u.CPUTime, time.Duration(self.Utime.Nano() + self.Stime.Nano())
	}
	insideBefore, nodeBefore := read()
	return func() (time.Duration, time.Duration) {
		inside, node := read()
		used, all := inside-insideBefore, inside-insideBefore+node-nodeBefore
		insideBefore, nodeBefore = inside, node
		return used, all
	}
}

// middles reports medians by what they are of.
func middles(b *testing.B, unit string, times map[string][]time.Duration) {
	b.Helper()
	for name, each := range times {
		slices.Sort(each)
		b.ReportMetric(float64(each[len(each)/2].Microseconds()), unit+name)
	}
}

// BenchmarkExecPython is a program of one line: started as ever, and by an interpreter that waited. Old and new in turn, so that what else the machine does is the same
// for both. Its CPU times are those of all processes; of a warm one there is the start before, too.
func BenchmarkExecPython(b *testing.B) {
	needsPython(b)
	s := create(b, newRuntime(b))
	put(b, s, map[string]string{"hello.py": "print('hello')"})
	times, used := map[string][]time.Duration{}, map[string][]time.Duration{}
	lap := cpu(b, s)
	note := func(name string) {
		inside, all := lap()
		used[name] = append(used[name], all)
		used[name+"-inside"] = append(used[name+"-inside"], inside)
	}
	for b.Loop() {
		for _, name := range []string{"cold", "warm"} {
			if name == "warm" {
				lap()
				warmUp(b, s, learnersWarmUp())
				note("start")
			}
			lap()
			start := time.Now()
			if o := collect(b, begin(b, s, learnersSpec("python3 hello.py")), ""); o.Warm != (name == "warm") || o.stdout != "hello\r\n" {
				b.Fatalf("%+v", o)
			}
			times[name] = append(times[name], time.Since(start))
			note(name)
		}
	}
	middles(b, "µs-", times)
	middles(b, "µs-cpu-", used)
}

// BenchmarkWarm is what an interpreter that waits costs: the time until it does, and the memory that it holds meanwhile.
func BenchmarkWarm(b *testing.B) {
	needsPython(b)
	s := create(b, newRuntime(b))
	memory := func() int64 {
		u, err := s.Usage()
		if err != nil {
			b.Fatal(err)
		}
		return u.MemoryBytes
	}
	var held int64
	for b.Loop() {
		before := memory()
		warmUp(b, s, learnersWarmUp())
		held += memory() - before
		b.StopTimer()
		run(b, s, "true")
		b.StartTimer()
	}
	b.ReportMetric(float64(held)/float64(b.N)/(1<<10), "KiB-held")
}
