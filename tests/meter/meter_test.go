package meter_test

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"rockpool/tests/meter"
)

// What a child and its child have used counts, while they live and after they were waited for.
func TestTheTreeCountsThoseBelow(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc here")
	}
	before, err := meter.Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	load, err := meter.Watch()
	if err != nil {
		t.Fatal(err)
	}
	// The child's child spins for 200 ms of its own CPU time; then the child waits for its input to end.
	cmd := exec.Command("python3", "-c", `
import os, sys, time
if os.fork() == 0:
    while time.process_time() < 0.2: pass
    os._exit(0)
os.wait()
print(flush=True)
sys.stdin.read()
`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("there is no python3: ", err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	least := 190 * time.Millisecond
	if living, err := meter.Tree(os.Getpid()); err != nil || living-before < least {
		t.Errorf("while the child lives: %v more, %v", living-before, err)
	}
	if self, err := meter.CPU(cmd.Process.Pid); err != nil || self > least {
		t.Errorf("the child itself has used %v, %v", self, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	after, err := meter.Tree(os.Getpid())
	if err != nil || after-before < least {
		t.Errorf("after its end: %v more, %v", after-before, err)
	}
	if others, err := load.Others(); err != nil || others < 0 || others > float64(runtime.NumCPU()) {
		t.Errorf("others: %v cores, %v", others, err)
	}
}

func TestAProcessThatIsNotThere(t *testing.T) {
	if _, err := meter.Tree(1 << 30); err == nil {
		t.Error("there is one")
	}
}

func TestTheMachineIsDescribed(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc here")
	}
	m, err := meter.Describe(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if m.Cores < 1 || m.Memory < 1<<26 || m.Kernel == "" || m.Fsync <= 0 {
		t.Errorf("%+v", m)
	}
}
