package nomad

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rockpool/internal/runner/execution"
)

// The scripts for a foreign cluster are run by a real shell here, in both orders of start.
func TestStderrComesThroughTheFIFO(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	for range 20 {
		fifo := filepath.Join(t.TempDir(), "it's a.fifo")
		main, reader := throughFIFO(fifo, script(execution.Spec{
			Command: `echo "out $X"; echo 'err' >&2; env | grep ^NOMAD_; exit 7`, Privileged: true, Env: map[string]string{"X": "a 'b'\n$c"},
		}))
		var out, errOut strings.Builder
		var code int
		var wg sync.WaitGroup
		wg.Go(func() {
			cmd := exec.Command(bash, "-c", main)
			cmd.Stdout, cmd.Env = &out, append(os.Environ(), "NOMAD_ALLOC_ID=1")
			if e, ok := errors.AsType[*exec.ExitError](cmd.Run()); ok {
				code = e.ExitCode()
			}
		})
		wg.Go(func() {
			cmd := exec.Command(bash, "-c", reader)
			cmd.Stdout = &errOut
			if err := cmd.Run(); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if code != 7 || out.String() != "out a 'b'\n$c\n" || errOut.String() != "err\n" {
			t.Fatalf("got %d %q %q", code, out.String(), errOut.String())
		}
		if _, err := os.Stat(fifo); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the FIFO is still there: %v", err)
		}
	}
}
