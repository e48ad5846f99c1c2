package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

const (
	environment = 10
	poolSize    = 3
	memoryMB    = 64
)

// demo is what the steps share.
type demo struct {
	*service.Service
	runner string
}

// step is one thing shown. do returns what it proved.
type step struct {
	title string
	do    func(context.Context, *demo) (string, error)
}

var steps = []step{
	{"Provision environment 10 on the image 'host' with 3 prewarmed runners", provision},
	{"Claim a runner", claim},
	{"Copy a Python file into it", copyIn},
	{"Run it: prompt, answer on stdin, stdout and stderr apart", greet},
	{"List and download what the program left behind", files},
	{"A program that hits its time limit of 1 s", timeLimit},
	{"A program that runs out of memory (limit 64 MB)", outOfMemory},
	{"A program that prints to both streams on a terminal", terminal},
	{"A command whose interpreter is missing", missing},
	{"Give the runner back", release},
}

func transcript(ctx context.Context, s *service.Service) error {
	d := &demo{Service: s}
	var failed []error
	begin := time.Now()
	for i, st := range steps {
		fmt.Printf("%2d. %s\n", i+1, st.title)
		sctx, cancel := context.WithTimeout(ctx, 60*time.Second)
		start := time.Now()
		proof, err := st.do(sctx, d)
		took := round(time.Since(start))
		cancel()
		if err != nil && ctx.Err() != nil {
			fmt.Printf("    interrupted after %s\n\n", took)
			return errors.Join(append(failed, errInterrupted)...)
		}
		if err != nil {
			fmt.Printf("    FAILED after %s: %v\n", took, err)
			failed = append(failed, fmt.Errorf("step %d: %w", i+1, err))
			if d.runner == "" {
				break // nothing can follow
			}
			continue
		}
		fmt.Printf("    proved: %s (%s)\n", proof, took)
	}
	fmt.Printf("\n%d steps in %s, %d failed.\n", len(steps), round(time.Since(begin)), len(failed))
	return errors.Join(failed...)
}

func provision(ctx context.Context, d *demo) (string, error) {
	start := time.Now()
	err := d.PutEnvironment(ctx, environment, platform.Environment{
		PrewarmingPoolSize: poolSize, CPULimit: 100, MemoryLimit: memoryMB, Image: "host",
	})
	if err != nil {
		return "", err
	}
	put := round(time.Since(start))
	if err := d.waitIdle(ctx, poolSize); err != nil {
		return "", err
	}
	return fmt.Sprintf("the pool fills itself: PUT answered after %s, %d runners were idle after %s", put, poolSize, round(time.Since(start))), nil
}

// waitIdle waits until the statistics show n idle runners. The public API offers no event for it.
func (d *demo) waitIdle(ctx context.Context, n uint) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := d.Statistics(ctx)
		if err != nil {
			return err
		}
		if got := s[fmt.Sprint(environment)]; got.IdleRunners == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d idle runners, the statistics say %+v", n, s)
		case <-t.C:
		}
	}
}

func claim(ctx context.Context, d *demo) (string, error) {
	id, err := d.Claim(ctx, environment, 5*time.Minute)
	if err != nil {
		return "", err
	}
	d.runner = id
	return "runner " + id + " is ours alone; the claim was durable before it was answered", nil
}

const program = `import sys
print("What is your name?", end=" ", flush=True)
name = sys.stdin.readline().strip()
print(f"Hello, {name}!")
print("this line goes to stderr", file=sys.stderr)
with open("greeting.txt", "w") as f:
    f.write(f"Hello, {name}!\n")
sys.exit(7)
`

func copyIn(ctx context.Context, d *demo) (string, error) {
	if err := d.Copy(ctx, d.runner, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "greet.py", Content: []byte(program)}); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes of greet.py are in /workspace, written by descriptor, with no shell and no tar inside", len(program)), nil
}

func greet(ctx context.Context, d *demo) (string, error) {
	start := time.Now()
	s, err := d.Start(ctx, d.runner, platform.Execution{Command: "python3 greet.py", TimeLimit: 20})
	if err != nil {
		return "", err
	}
	defer s.Abort()
	seen := ""
	answered := false
	o, err := s.WaitFunc(ctx, func(m platform.Message) {
		shown := fmt.Sprintf("%q", m.Text)
		if m.Type == "exit" {
			shown = fmt.Sprint(m.Code)
		}
		fmt.Printf("    %9s  %-6s %s\n", round(m.At.Sub(start)), m.Type, shown)
		seen += m.Text
		if !answered && strings.Contains(seen, "name? ") {
			answered = true
			fmt.Printf("    %9s  stdin  %q\n", round(time.Since(start)), "Ada\n")
			if err := s.Send("Ada\n"); err != nil {
				fmt.Println("    stdin:", err)
			}
		}
	})
	switch {
	case err != nil:
		return "", err
	case o.Final.Type != "exit" || o.Final.Code != 7:
		return "", fmt.Errorf("the end was %+v, not exit 7", o.Final)
	case !strings.Contains(o.Stdout, "Hello, Ada!"):
		return "", fmt.Errorf("stdout was %q", o.Stdout)
	case strings.TrimSpace(o.Stderr) != "this line goes to stderr":
		return "", fmt.Errorf("stderr was %q", o.Stderr)
	}
	return "the program waited for its input, each stream arrived as its own messages, and exit code 7 is the program's own", nil
}

func files(ctx context.Context, d *demo) (string, error) {
	list, err := d.List(ctx, d.runner, "./", true)
	if err != nil {
		return "", err
	}
	for _, f := range list {
		fmt.Printf("    %s%s %-5s %5d %s\n", f.EntryType, f.Permissions, f.Owner, f.Size, f.Name)
	}
	data, err := d.Download(ctx, d.runner, "greeting.txt")
	if err != nil {
		return "", err
	}
	if string(data) != "Hello, Ada!\n" {
		return "", fmt.Errorf("greeting.txt holds %q", data)
	}
	return fmt.Sprintf("%d files, greeting.txt is intact", len(list)), nil
}

func timeLimit(ctx context.Context, d *demo) (string, error) {
	start := time.Now()
	o, err := d.Run(ctx, d.runner, platform.Execution{Command: "python3 -c 'while True: pass'", TimeLimit: 1})
	if err != nil {
		return "", err
	}
	took := time.Since(start)
	if o.Final.Type != "timeout" || took > 2*time.Second {
		return "", fmt.Errorf("the end was %+v after %s", o.Final, took)
	}
	return fmt.Sprintf("an endless loop ended with a timeout message after %s", round(took)), nil
}

func outOfMemory(ctx context.Context, d *demo) (string, error) {
	o, err := d.Run(ctx, d.runner, platform.Execution{Command: "python3 -c 'a = [bytearray(1 << 20) for _ in range(1 << 20)]'", TimeLimit: 20})
	if err != nil {
		return "", err
	}
	if o.Final.Type != "exit" || o.Final.Code != 137 {
		return "", fmt.Errorf("the end was %+v, stderr %q", o.Final, o.Stderr)
	}
	if o, err = d.Run(ctx, d.runner, platform.Execution{Command: "echo still here", TimeLimit: 5}); err != nil {
		return "", err
	}
	if !strings.Contains(o.Stdout, "still here") {
		return "", fmt.Errorf("the runner afterwards: %+v", o.Final)
	}
	return "the kernel ended that one program (exit 137), the runner went on", nil
}

func terminal(ctx context.Context, d *demo) (string, error) {
	o, err := d.Run(ctx, d.runner, platform.Execution{
		Command: "if [ -t 1 ]; then echo stdout is a terminal; fi; echo to stderr >&2; echo again > /dev/stderr", TimeLimit: 5,
	})
	if err != nil {
		return "", err
	}
	got := strings.Fields(o.Stderr)
	if o.Stdout != "stdout is a terminal\r\n" || strings.Join(got, " ") != "to stderr again" || o.Final.Type != "exit" || o.Final.Code != 0 {
		return "", fmt.Errorf("stdout %q, stderr %q, end %+v", o.Stdout, o.Stderr, o.Final)
	}
	return fmt.Sprintf("stdout %q came from a terminal, stderr %q through a pipe of its own", o.Stdout, o.Stderr), nil
}

func missing(ctx context.Context, d *demo) (string, error) {
	o, err := d.Run(ctx, d.runner, platform.Execution{Command: "brainfuck main.bf", TimeLimit: 5})
	if err != nil {
		return "", err
	}
	if o.Final.Type != "exit" || o.Final.Code != 127 || !strings.Contains(o.Stderr, "brainfuck: command not found") {
		return "", fmt.Errorf("end %+v, stderr %q", o.Final, o.Stderr)
	}
	return fmt.Sprintf("exit code 127, and the shell's words on stderr: %q", strings.TrimSpace(o.Stderr)), nil
}

func release(ctx context.Context, d *demo) (string, error) {
	if err := d.Release(ctx, d.runner); err != nil {
		return "", err
	}
	status, _, err := d.Do(ctx, "GET", "/runners/"+d.runner+"/files", nil)
	if err != nil {
		return "", err
	}
	if status != 410 {
		return "", fmt.Errorf("the old id answers %d", status)
	}
	if err := d.waitIdle(ctx, poolSize); err != nil {
		return "", err
	}
	return fmt.Sprintf("the id answers 410 Gone from now on, and the pool is back at %d", poolSize), nil
}
