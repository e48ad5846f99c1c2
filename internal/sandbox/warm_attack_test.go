//go:build linux && cgo

package sandbox_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

// hostile has code run in each interpreter that begins to wait, as a program of the tenant's can have it that ran before. Its variable tells it from others.
func hostile(t *testing.T, s *sandbox.Sandbox, code string) {
	t.Helper()
	put(t, s, map[string]string{
		"p.py": "print('ran')", "/home/user/hostile.py": code,
		"/home/user/.local/lib/" + userSite(t, s) + "/site-packages/hostile.pth": "import os; exec(open('/home/user/hostile.py').read()) if os.environ.get('PYTHONPATH') else None\n",
	})
}

// Between two programs a tenant has no use of the machine: what says that it waits and goes on working gets next to nothing of the processor.
func TestWhatSaysThatItWaitsCannotWork(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	start := time.Now()
	collect(t, begin(t, s, learnersSpec("true")), "")
	usual := time.Since(start)
	hostile(t, s, "import os\nos.write(4, b'R')\nos.fork()\nwhile True: pass\n")
	warmUp(t, s, learnersWarmUp())
	// A machine that is itself kept from its processors counts that as use, once in a while. What has no bound uses a whole processor and more each time.
	const period = time.Second
	used := period
	for range 8 {
		before, err := s.Usage()
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(period)
		after, err := s.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if used = min(used, after.CPUTime-before.CPUTime); used <= period/20 {
			break
		}
	}
	if used > period/20 {
		t.Errorf("it used %v of %v", used, period)
	}
	start = time.Now()
	if o := collect(t, begin(t, s, learnersSpec("true")), ""); o.Warm || o.ExitCode != 0 {
		t.Errorf("%+v", o)
	}
	if took, most := time.Since(start), max(2*time.Second, 5*usual); took > most {
		t.Errorf("the next program took %v, which is more than %v", took, most)
	}
}

// What waited is as fast as any other once it has a program.
func TestWhatWaitedMayWork(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{"p.py": "import time\nt = time.process_time()\nb = time.monotonic()\nwhile time.process_time() - t < 0.3: pass\nprint(time.monotonic() - b < 5)\n"})
	warmUp(t, s, learnersWarmUp())
	if o := collect(t, begin(t, s, learnersSpec("python3 p.py")), ""); !o.Warm || strings.TrimSpace(o.stdout) != "True" {
		t.Errorf("%+v", o)
	}
}

// What runs is the program that was asked for, whatever a warm-up is said to be: a command that already names a program waits for none.
func TestWarmUpsThatNameAProgram(t *testing.T) {
	needsPython(t)
	s := create(t, newRuntime(t))
	put(t, s, map[string]string{"a.py": "import sys; print('a', sys.argv)", "b.py": "import sys; print('b', sys.argv)"})
	for _, words := range [][]string{{"a.py"}, {"-u", "a.py"}, {"-c", "print(1)"}, {"-m", "b"}, {"-"}, {"-X", "dev", "a.py"}} {
		warm := learnersWarmUp()
		warm.Command = append(warm.Command, words...)
		if err := s.Warm(t.Context(), warm); err == nil {
			t.Errorf("%q waits", words)
		} else if errors.Is(err, sandbox.ErrBusy) {
			t.Fatal(err)
		}
		if words[len(words)-1] != "a.py" {
			continue
		}
		o := collect(t, begin(t, s, learnersSpec("python3 "+strings.Join(words, " ")+" b.py")), "")
		if strings.TrimSpace(o.stdout) != "a ['a.py', 'b.py']" {
			t.Errorf("%q: %+v", words, o)
		}
	}
}

// The descriptor of the code is no way from one sandbox to another: it cannot be written, and has a place of reading of its own.
func TestTheCodeOfWarmUpsIsNotShared(t *testing.T) {
	needsPython(t)
	r := newRuntime(t)
	code := `
import fcntl, os
def attempt(f, *a):
    try: return repr(f(*a))
    except Exception as e: return type(e).__name__
with open('/tmp/seen', 'w') as f:
    print(fcntl.fcntl(5, fcntl.F_GETFL) & os.O_ACCMODE, os.lseek(5, 0, 1), attempt(os.write, 5, b'x'), attempt(os.ftruncate, 5, 0), attempt(os.fchmod, 5, 0o777),
        attempt(os.open, '/proc/self/fd/5', os.O_RDWR), attempt(os.utime, 5), attempt(os.setxattr, 5, 'user.x', b'x'), file=f)
os.lseek(5, 77, 0)
`
	for range 2 {
		s := create(t, r)
		hostile(t, s, code)
		warmUp(t, s, learnersWarmUp())
		if o := shell(t, s, "user", "cat /tmp/seen"); strings.TrimSpace(o.stdout) != "0 0 OSError OSError PermissionError PermissionError PermissionError PermissionError" {
			t.Errorf("%q %q", o.stdout, o.stderr)
		}
	}
}
