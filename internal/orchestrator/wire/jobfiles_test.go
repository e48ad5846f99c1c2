package wire_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rockpool/internal/orchestrator/jobspec"
	"rockpool/internal/orchestrator/wire"
)

// refused are the job files that the servers do not take yet, by what they say. Once a feature is there this test asks for its line to go.
var refused = map[string]string{
	"periodic.nomad.hcl":      "Periodic jobs are not supported",
	"parameterized.nomad.hcl": "Parameterized jobs are not supported",
}

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
			got := wire.Validate(j).Text()
			switch want := refused[name]; {
			case len(wire.Validate(j).Errors) == 0 && want != "":
				t.Errorf("it is taken now: remove it from the list of refused files")
			case len(wire.Validate(j).Errors) > 0 && (want == "" || !strings.Contains(got, want)):
				t.Errorf("it is refused: %s", got)
			}
		})
	}
	for _, want := range []string{"batch", "service", "system", "sysbatch"} {
		if !types[want] {
			t.Errorf("no file shows a job of type %s", want)
		}
	}
}
