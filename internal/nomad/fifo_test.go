package nomad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// script runs an argv of ours as the container's user, whose input has ended.
func script(t *testing.T, argv []string, err error) (out string, code int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return stdout.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return stdout.String(), 0
}

const fifoMark = "0123456789abcdef0123456789abcdef"

func TestAFIFOOfAStrangerIsNotTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can play somebody else")
	}
	fifo := filepath.Join(t.TempDir(), "stderr")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o666), os.Chmod(fifo, 0o666), os.Chown(fifo, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	argv, err := marked(fifoMark, fifo, "", "", "/bin/bash", "-c", "echo secret >&2; echo ran")
	if out, code := script(t, argv, err); code != 126 || !strings.Contains(out, "fail:no FIFO") || strings.Contains(out, "ran") {
		t.Errorf("the command's side: %q, code %d", out, code)
	}
	argv, err = bash("", stderrScript, fifoMark, fifo)
	if out, code := script(t, argv, err); code != 1 || out != "" {
		t.Errorf("the reader's side: %q, code %d", out, code)
	}
}

// A learner who watches for the name may put a link there, and turn it while the script looks: root must write into no other file by that.
func TestALinkInPlaceOfTheFIFOLeadsNowhere(t *testing.T) {
	dir := t.TempDir()
	real, victim, fifo := filepath.Join(dir, "real"), filepath.Join(dir, "victim"), filepath.Join(dir, "stderr")
	const precious = "root:x:0:0"
	if err := errors.Join(syscall.Mkfifo(real, 0o600), os.WriteFile(victim, []byte(precious), 0o600), os.Symlink(real, fifo)); err != nil {
		t.Fatal(err)
	}
	// Whatever is written to it stays in it, and can be read.
	hold, err := os.OpenFile(real, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	stop := make(chan struct{})
	var turning sync.WaitGroup
	defer turning.Wait()
	defer close(stop)
	turning.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := fmt.Sprint(fifo, ".next")
			_ = os.Symlink([]string{real, victim}[i%2], next)
			_ = os.Rename(next, fifo)
		}
	})
	argv, err := marked(fifoMark, fifo, "", "", "/bin/true")
	for range 30 { // each would be hit with a probability of about one in eight
		script(t, argv, err)
		if got, err := os.ReadFile(victim); err != nil || string(got) != precious {
			t.Fatalf("a file of root's became %q (%v)", got, err)
		}
	}
}
