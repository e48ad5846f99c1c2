package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// bootTime bounds a machine's whole life, of which an idle computer without KVM needs less than a minute.
const bootTime = 6 * time.Minute

// tools are the programs that the sandbox's tests start, besides Python.
var tools = []string{
	"bash", "sh", "cat", "chmod", "cp", "dmesg", "echo", "env", "false", "grep", "head", "hostname", "id", "kill", "ln", "ls", "mkdir", "mkfifo", "mknod",
	"mount", "mv", "nice", "perl", "ps", "rm", "seq", "setsid", "sleep", "sort", "stat", "stty", "tail", "touch", "true", "tty", "uname", "wc", "yes",
}

// warm are the tests of interpreters that wait. Most of them start dozens, which takes an emulated processor longer than a machine lives.
const warm = "^Test(Warm|What(SaysThatItWaits|Waited)|TheCodeOfWarmUps|NothingRunsBesideOneThatWaits)"

// many makes hundreds of sandboxes, of which emulation makes ten in a second.
const many = "^TestRemainsAreBounded$/^in_number$" // and no space, as it is an argument of the machine's kernel

// TestSandboxOnControlGroupsV2 runs the test suite of the sandbox, but for warm-ups, where there is no other control group hierarchy than v2.
func TestSandboxOnControlGroupsV2(t *testing.T) {
	results := boot(t, nil, "/sandbox.test", "-test.v", "-test.timeout=5m", "-test.skip="+many+"|"+warm)
	report(t, results, "TestEcho", "TestExitCodesAreTheProgramsOwn", "TestNothingSurvivesItsExecution", "TestKillEndsTheWholeGroup", "TestOutOfMemoryIsTheKernelsVerdict",
		"TestForkBombEndsAtTheLimit", "TestMemoryFilledWithFiles", "TestDestroyLeavesNothing", "TestAttachAfterRestart", "TestDelegationEmptiesTheGroup",
		"TestTheGroupAloneRefusesOtherDevices", "TestDevicesAreThoseThatWereGiven", "TestAnImageCannotMoveTheFilesOfADevice")
}

// TestWarmUpsOnControlGroupsV2 runs those tests of warm-ups that start few, in a machine of their own.
func TestWarmUpsOnControlGroupsV2(t *testing.T) {
	names := []string{"TestWhatSaysThatItWaitsCannotWork", "TestWhatWaitedMayWork", "TestTheCodeOfWarmUpsIsNotShared", "TestWarmUpsThatNameAProgram",
		"TestNothingRunsBesideOneThatWaits", "TestWarmEndsWithTheNode"}
	report(t, boot(t, nil, "/sandbox.test", "-test.v", "-test.timeout=5m", "-test.run=^("+strings.Join(names, "|")+")$"), names...)
}

// TestSandboxInADelegatedGroup is what a container or a systemd unit with Delegate=yes is: the group at the root of what the node sees has the node itself in
// it, and v2 lets no such group bound its children.
func TestSandboxInADelegatedGroup(t *testing.T) {
	names := []string{"TestEcho", "TestKillEndsTheWholeGroup", "TestOutOfMemoryIsTheKernelsVerdict", "TestForkBombEndsAtTheLimit", "TestDestroyLeavesNothing"}
	report(t, boot(t, nil, "-delegated", "/sandbox.test", "-test.v", "-test.timeout=5m", "-test.run=^("+strings.Join(names, "|")+")$"), names...)
}

// TestResourceAttacksOnControlGroupsV2 starts the real gateway where there is no other control group hierarchy than v2, and runs those cases of the hostile
// checklist against it that are about resources.
func TestResourceAttacksOnControlGroupsV2(t *testing.T) {
	cases := "HOSTILE=A1,A2,A3,A4,A5,A6,A7,A8,A9,A10,A11,A13,A15,A16,A17,A18,A19,A20,A21,A22,B13,E8"
	report(t, boot(t, []string{cases}, cases, "HOSTILE_PATIENCE=6", "HOSTILE_COMPILED=/attacks", "ROCKPOOL_GATEWAY=/gateway",
		"/hostile.test", "-test.v", "-test.timeout=8m", "-test.run=^TestHostile$"), "TestHostile")
}

// result is how one test ended inside.
type result struct{ name, verdict, detail string }

// report makes a subtest of each test that ran inside. Those that are named must have passed: a machine on which everything skips proves nothing.
func report(t *testing.T, results []result, needed ...string) {
	passed := make(map[string]bool)
	for _, r := range results {
		passed[r.name] = r.verdict == "PASS"
		t.Run(r.name, func(t *testing.T) {
			switch r.verdict {
			case "PASS":
				t.Log(r.detail)
			case "FAIL":
				t.Error(r.detail)
			case "SKIP":
				t.Skip(r.detail)
			}
		})
	}
	for _, name := range needed {
		if !passed[name] {
			t.Errorf("%s did not pass", name)
		}
	}
}

// boot starts a machine whose process 1 has these arguments, and gives what the tests in it said. With attacks, which are variables that choose some,
// the machine has the gateway and the hostile suite in it instead of the sandbox's tests.
func boot(t *testing.T, attacks []string, arguments ...string) []result {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the virtual machine is made for amd64")
	}
	if testing.Short() {
		t.Skip("a virtual machine without KVM takes a minute")
	}
	const emulator = "qemu-system-x86_64"
	if _, err := exec.LookPath(emulator); err != nil {
		t.Skip("no virtual machine: install the Debian package qemu-system-x86")
	}
	k := findKernel(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	// No KVM: where it is emulated itself it may hang, and these tests ask for little. A processor of x86-64-v2 is what distributions build for.
	machine := exec.CommandContext(ctx, emulator, "-accel", "tcg", "-cpu", "Nehalem", "-smp", "2", "-m", "1536", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", k.image, "-initrd", makeInitramfs(t, k, attacks),
		"-append", "console=ttyS0 loglevel=1 panic=-1 cgroup_no_v1=all -- "+strings.Join(arguments, " "))
	var console bytes.Buffer
	machine.Stdout, machine.Stderr = &console, &console
	machine.WaitDelay = 10 * time.Second
	start := time.Now()
	err := machine.Run()
	t.Logf("the machine ran %v", time.Since(start).Round(100*time.Millisecond))
	results, problem := parse(strings.ReplaceAll(console.String(), "\r\n", "\n"))
	if err := errors.Join(err, context.Cause(ctx), problem); err != nil {
		t.Errorf("%v; its console:\n%s", err, console.String())
	}
	return results
}

var (
	markers = regexp.MustCompile(`(?s)=== start on ([^\n]*)\n(.*)\n=== exit (\d+) ===`)
	verdict = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)`)
)

// parse finds the verdicts of the tests between the markers of process 1. The detail of one is what was printed since the one before.
func parse(console string) ([]result, error) {
	found := markers.FindStringSubmatch(console)
	if found == nil {
		return nil, errors.New("the machine did not come to the end of the tests")
	}
	if !strings.Contains(found[1], "memory") || !strings.Contains(found[1], "pids") {
		return nil, fmt.Errorf("control groups v2 lack controllers: %s", found[1])
	}
	var all []result
	var since strings.Builder
	failed := false
	for line := range strings.Lines(found[2]) {
		since.WriteString(line)
		if m := verdict.FindStringSubmatch(line); m != nil {
			all = append(all, result{m[2], m[1], since.String()})
			failed = failed || m[1] == "FAIL"
			since.Reset()
		}
	}
	if failed { // a panic is printed after its verdict
		all[len(all)-1].detail += since.String()
	}
	if found[3] != "0" && !failed {
		return all, fmt.Errorf("exit code %s without a failed test", found[3])
	}
	return all, nil
}

// makeInitramfs builds the test binary and the program that is process 1, and packs the machine's file system.
func makeInitramfs(t *testing.T, k kernel, attacks []string) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	build := func(name string, env []string, command ...string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		cmd := exec.Command("go", append(command[:len(command)-1:len(command)-1], "-o", path, command[len(command)-1])...)
		cmd.Env = append(os.Environ(), env...)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, text)
		}
		return path
	}
	init, err := os.ReadFile(build("init", []string{"CGO_ENABLED=0"}, "build", "-ldflags=-s -w", "rockpool/tests/vm/init"))
	must(err)
	var programs []string
	if attacks == nil {
		programs = []string{build("sandbox.test", []string{"CGO_ENABLED=1"}, "test", "-c", "-ldflags=-s -w", "rockpool/internal/sandbox")}
	} else {
		programs = []string{build("gateway", []string{"CGO_ENABLED=1"}, "build", "-ldflags=-s -w", "rockpool/cmd/gateway"),
			build("hostile.test", []string{"CGO_ENABLED=0"}, "test", "-c", "-ldflags=-s -w", "rockpool/tests/hostile")}
	}

	path := filepath.Join(dir, "initramfs")
	f, err := os.Create(path)
	must(err)
	a := newInitramfs(f)
	for _, name := range []string{"dev", "etc", "home", "mnt", "modules", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var"} {
		a.dir(name, 0o755)
	}
	a.entry("dev/console", 0o020600, 0, [2]int{5, 1}, nil) // process 1 speaks here before anything is mounted
	a.file("init", 0o755, init)
	for _, p := range programs {
		binary, err := os.ReadFile(p)
		must(err)
		a.file(filepath.Base(p), 0o755, binary)
	}
	if attacks != nil {
		compiled := filepath.Join(dir, "attacks")
		must(os.Mkdir(compiled, 0o755))
		compile := exec.Command(filepath.Join(dir, "hostile.test"), "-test.run=^TestCompile$")
		compile.Env = append(append(os.Environ(), "HOSTILE_COMPILE="+compiled), attacks...)
		if text, err := compile.CombinedOutput(); err != nil {
			t.Fatalf("compile the attacks: %v\n%s", err, text)
		}
		a.dir("attacks", 0o755)
		files, err := os.ReadDir(compiled)
		must(err)
		for _, f := range files {
			content, err := os.ReadFile(filepath.Join(compiled, f.Name()))
			must(err)
			a.file("attacks/"+f.Name(), 0o755, content)
		}
	}
	modules, err := k.module("overlay")
	must(err)
	for i, m := range modules {
		a.file(fmt.Sprintf("modules/%02d.ko", i), 0o644, m)
	}
	for _, link := range []string{"/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/passwd", "/etc/group"} {
		if err := a.host(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	must(a.programs(tools...))
	must(a.python("_ctypes, encodings.ascii, fcntl, mmap, multiprocessing, ssl, subprocess, threading"))
	listing, _ := exec.Command("ldd", programs...).Output() // it fails for a static one, and tells of the others
	for field := range strings.FieldsSeq(string(listing)) {
		if strings.HasPrefix(field, "/") && !strings.HasSuffix(field, ":") {
			must(a.host(field))
		}
	}
	must(a.close())
	must(f.Close())
	if info, err := os.Stat(path); err == nil {
		t.Logf("initramfs of %d MB", info.Size()>>20)
	}
	return path
}
