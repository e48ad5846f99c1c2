package wire_test

import (
	"os"
	"path/filepath"
	"testing"

	"rockpool/internal/orchestrator/jobspec"
	"rockpool/internal/orchestrator/wire"
)

func TestTheJobFilesRun(t *testing.T) {
	files, err := filepath.Glob("../../../deploy/jobs/*.nomad.hcl")
	if err != nil || len(files) < 7 {
		t.Fatalf("found %q, %v", files, err)
	}
	types := map[string]bool{}
	for _, path := range files {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			j, err := jobspec.Parse(name, text, "")
			if err != nil {
				t.Fatal(err)
			}
			if err := wire.Complete(j); err != nil {
				t.Fatal(err)
			}
			types[*j.Type] = true
			if p := wire.Validate(j); len(p.Errors) > 0 {
				t.Errorf("it is refused: %s", p.Text())
			}
		})
	}
	for _, want := range []string{"batch", "service", "system", "sysbatch"} {
		if !types[want] {
			t.Errorf("no file shows a job of type %s", want)
		}
	}
}
