package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"time"

	"rockpool/tests/platform"
)

// act is something that one client does from beginning to end, and gives back what it took.
type act struct {
	name string
	do   func(ctx context.Context, w *world, r *rand.Rand) error
}

// honest are acts in which every answer has to be right.
var honest = []act{
	{"submission", submission(env)}, {"submission, warm", submission(warm)}, {"several in one runner", severalTimes}, {"dialogue", dialogue}, {"stopped by the learner", stopped}, {"large output", largeOutput},
}

// submission is what a platform does for each.
func submission(id int) func(context.Context, *world, *rand.Rand) error {
	return func(ctx context.Context, w *world, r *rand.Rand) error {
		return w.inRunnerOf(ctx, id, func(runner string) error {
			n := r.IntN(1000)
			program := fmt.Sprintf("import sys\nprint('hello', %d)\nprint('aside', file=sys.stderr)\nsys.exit(%d)\n", n, n%100)
			if err := w.Copy(ctx, runner, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "main.py", Content: []byte(program)}); err != nil {
				return err
			}
			if err := w.expect(ctx, runner, "python3 main.py", fmt.Sprintf("hello %d\r\n", n), "aside", n%100); err != nil {
				return err
			}
			files, err := w.List(ctx, runner, "./", true)
			if err != nil || len(files) != 1 || files[0].Name != "./main.py" && files[0].Name != "main.py" {
				return fmt.Errorf("the listing is %+v, %v", files, err)
			}
			got, err := w.Download(ctx, runner, "main.py")
			if err != nil || string(got) != program {
				return fmt.Errorf("the file came back as %q, %v", got, err)
			}
			return nil
		})
	}
}

func severalTimes(ctx context.Context, w *world, r *rand.Rand) error {
	return w.inRunner(ctx, func(runner string) error {
		for i := range 10 {
			if err := w.expect(ctx, runner, fmt.Sprintf("echo run %d; echo no >&2; exit %d", i, i), fmt.Sprintf("run %d\r\n", i), "no", i); err != nil {
				return err
			}
		}
		return nil
	})
}

func dialogue(ctx context.Context, w *world, _ *rand.Rand) error {
	return w.inRunner(ctx, func(runner string) error {
		s, err := w.Start(ctx, runner, platform.Execution{Command: "stty -echo; echo ready; while read line; do echo got $line; [ $line = 20 ] && exit 7; done", TimeLimit: 60})
		if err != nil {
			return err
		}
		defer s.Abort()
		seen := ""
		until := func(want string) error {
			for !strings.HasSuffix(seen, want+"\r\n") {
				m, err := s.Next(ctx)
				if err != nil {
					return err
				}
				seen += m.Text
			}
			return nil
		}
		if err := until("ready"); err != nil {
			return err
		}
		for i := 1; i <= 20; i++ {
			if err := errors.Join(s.Send(fmt.Sprintf("%d\n", i)), until(fmt.Sprintf("got %d", i))); err != nil {
				return err
			}
		}
		for {
			m, err := s.Next(ctx)
			if err != nil {
				return fmt.Errorf("the end of a dialogue: %w", err)
			}
			if m.Type == "exit" {
				if m.Code != 7 {
					return fmt.Errorf("a dialogue ended with %d", m.Code)
				}
				return nil
			}
		}
	})
}

// stopped presses stop: the runner stays usable.
func stopped(ctx context.Context, w *world, _ *rand.Rand) error {
	return w.inRunner(ctx, func(runner string) error {
		s, err := w.Start(ctx, runner, platform.Execution{Command: "echo begun; exec sleep 100", TimeLimit: 60})
		if err != nil {
			return err
		}
		defer s.Abort()
		for seen := ""; !strings.Contains(seen, "begun"); {
			m, err := s.Next(ctx)
			if err != nil {
				return err
			}
			seen += m.Text
		}
		if err := s.Stop(); err != nil {
			return err
		}
		for ctx.Err() == nil {
			if _, err := s.Next(ctx); err != nil {
				break // its connection is over
			}
		}
		return w.expect(ctx, runner, "echo after; echo - >&2", "after\r\n", "-", 0)
	})
}

func largeOutput(ctx context.Context, w *world, _ *rand.Rand) error {
	const size = 1 << 20
	return w.inRunner(ctx, func(runner string) error {
		o, err := w.Run(ctx, runner, platform.Execution{Command: fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size), TimeLimit: 60})
		if err != nil || len(o.Stdout) != size || strings.Trim(o.Stdout, "x") != "" || o.Final.Type != "exit" || o.Final.Code != 0 {
			return fmt.Errorf("%d bytes of %d came, %+v, %v", len(o.Stdout), size, o.Final, err)
		}
		return nil
	})
}

// expect runs a command that has to say and return exactly that.
func (w *world) expect(ctx context.Context, runner, command, stdout, stderr string, code int) error {
	o, err := w.Run(ctx, runner, platform.Execution{Command: command, TimeLimit: 60})
	if err != nil || o.Stdout != stdout || strings.TrimSpace(o.Stderr) != stderr || o.Final.Type != "exit" || o.Final.Code != code {
		return fmt.Errorf("%q: stdout %q, stderr %q, %+v, %v", command, o.Stdout, o.Stderr, o.Final, err)
	}
	return nil
}

func (w *world) inRunner(ctx context.Context, f func(runner string) error) error {
	return w.inRunnerOf(ctx, env, f)
}

// inRunnerOf claims one of an environment for a time.
func (w *world) inRunnerOf(ctx context.Context, id int, f func(runner string) error) error {
	runner, err := w.claim(ctx, id)
	if err != nil {
		return err
	}
	return errors.Join(f(runner), w.Release(ctx, runner))
}

// claim takes a runner, and refuses one that somebody had before.
func (w *world) claim(ctx context.Context, id int) (string, error) {
	runner, err := w.Claim(ctx, id, time.Hour)
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.claimed[runner] {
		return "", fmt.Errorf("runner %s was handed out twice", runner)
	}
	w.claimed[runner] = true
	return runner, nil
}

const outOfMemory = "exit 137|error .*OOM Killed.*"

// hostile are acts that have to end as they say, whatever they do inside.
var hostile = []act{
	program("fork bomb", 1, ":(){ :|:& };: ; while :; do :; done", outOfMemory+"|timeout"), // as many processes as are allowed take 110 to 127 MB of 128
	program("memory", 60, `python3 -c 'h = []
while True: h.append(b"x" * (1 << 20))'`, outOfMemory),
	program("endless output", 1, "yes hostile", "timeout"),
	program("a full disk", 2, "dd if=/dev/zero of=/tmp/a bs=1M; dd if=/dev/zero of=big bs=1M; exit 28", outOfMemory+"|exit 28|timeout"),
	program("many files", 2, "i=0; while [ $i -lt 20000 ] && : > f$i; do i=$((i+1)); done; exit 28", outOfMemory+"|exit 28|timeout"),
	program("a process left behind", 60, "setsid sh -c 'trap \"\" TERM HUP QUIT INT; sleep 1000' & sleep 0.1; exit 3", "exit 3"),
	program("stops itself", 1, "trap '' HUP INT QUIT TERM; kill -STOP $$; while :; do :; done", "timeout"),
	program("spinning processes", 1, "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; while :; do :; done", "timeout"),
	{"connection dropped", dropped},
	{"client that does not read", deaf},
	{"bad requests", badRequests},
	{"runner deleted under a program", pulledAway},
}

// program is one that has some seconds before it is ended.
func program(name string, limit int, command, verdicts string) act {
	allowed := regexp.MustCompile("^(" + verdicts + ")$")
	return act{name, func(ctx context.Context, w *world, _ *rand.Rand) error {
		runner, err := w.claim(ctx, env)
		if err != nil {
			return err
		}
		o, err := w.Run(ctx, runner, platform.Execution{Command: command, TimeLimit: limit})
		if err != nil {
			return fmt.Errorf("no verdict: %+v, %v", o.Final, err)
		}
		got := o.Final.Type
		switch got {
		case "exit":
			got = fmt.Sprintf("exit %d", o.Final.Code)
		case "error":
			got = "error " + o.Final.Text
		}
		if !allowed.MatchString(got) {
			return fmt.Errorf("the verdict is %q", got)
		}
		return w.releaseLost(ctx, runner)
	}}
}

// releaseLost gives a runner back that may be gone.
func (w *world) releaseLost(ctx context.Context, runner string) error {
	err := w.Release(ctx, runner)
	if e, ok := errors.AsType[*platform.StatusError](err); ok && e.Status == http.StatusGone {
		return nil
	}
	return err
}

func dropped(ctx context.Context, w *world, _ *rand.Rand) error {
	return w.inRunner(ctx, func(runner string) error {
		for range 3 {
			s, err := w.Start(ctx, runner, platform.Execution{Command: "yes", TimeLimit: 5})
			if err != nil {
				return err
			}
			_, err = s.Next(ctx)
			s.Abort()
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func deaf(ctx context.Context, w *world, _ *rand.Rand) error {
	return w.inRunner(ctx, func(runner string) error {
		s, err := w.Start(ctx, runner, platform.Execution{Command: "yes", TimeLimit: 2})
		if err != nil {
			return err
		}
		defer s.Abort()
		return pause(ctx, time.Second)
	})
}

// badRequests get an answer that says that they are bad, never one that says that the service is.
func badRequests(ctx context.Context, w *world, r *rand.Rand) error {
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{"POST", "/runners", "{"}, {"POST", "/runners", `{"executionEnvironmentId":"x"}`}, {"POST", "/runners", `{"executionEnvironmentId":424242}`},
		{"GET", "/runners/nobody/files?path=/", nil}, {"DELETE", fmt.Sprintf("/runners/10-%08x-0000-11f1-bfb5-962598be1b03", r.Uint32()), nil},
		{"PATCH", "/runners/x/files", strings.Repeat("[", 10000)}, {"GET", "/nowhere", nil}, {"PUT", "/execution-environments/x", "{}"},
	} {
		status, body, err := w.Do(ctx, c.method, c.path, c.body)
		if err != nil || status < 400 || status > 499 {
			return fmt.Errorf("%s %s: %d %s, %v", c.method, c.path, status, body, err)
		}
	}
	return nil
}

func pulledAway(ctx context.Context, w *world, _ *rand.Rand) error {
	runner, err := w.claim(ctx, env)
	if err != nil {
		return err
	}
	s, err := w.Start(ctx, runner, platform.Execution{Command: "sleep 100", TimeLimit: 60})
	if err != nil {
		return err
	}
	defer s.Abort()
	if _, err := s.Next(ctx); err != nil {
		return err
	}
	if err := w.Release(ctx, runner); err != nil {
		return err
	}
	o, err := s.Wait(ctx)
	if o.Final.Type == "exit" && o.Final.Code == 0 {
		return errors.New("a program that was ended with its runner seems to have ended well")
	}
	if ctx.Err() != nil {
		return fmt.Errorf("its execution does not end: %w", err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
