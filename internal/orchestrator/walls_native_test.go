//go:build linux && cgo

package orchestrator

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"rockpool/internal/image"
)

func TestRuntimesThatDoNotWorkStopTheStart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	images, err := image.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	liar := filepath.Join(t.TempDir(), "liar")
	if err := os.WriteFile(liar, []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo liar version 1 && exit\necho it cannot >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		runtimes []string
		says     []string
	}{
		"no path":           {[]string{"runsc"}, []string{"runsc", "name=path"}},
		"no such program":   {[]string{"runsc=/no/such/runsc"}, []string{"runsc", "/no/such/runsc"}},
		"no runtime":        {[]string{"strange=/bin/true"}, []string{"strange", "/bin/true"}},
		"a relative path":   {[]string{"crun=crun"}, []string{"crun", "absolute"}},
		"no name":           {[]string{"=/usr/bin/crun"}, []string{"name"}},
		"one that runs not": {[]string{"liar=" + liar}, []string{"liar", "it cannot"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := openClasses(AgentConfig{DataDir: t.TempDir(), Runtimes: c.runtimes, Log: log}, images)
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
		})
	}
	program, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is not installed here")
	}
	word := "runc=" + program
	if _, _, err := openClasses(AgentConfig{DataDir: t.TempDir(), Runtimes: []string{word, word}, Log: log}, images); err == nil || !strings.Contains(err.Error(), "different") {
		t.Errorf("one name twice: %v", err)
	}
	classes, closeAll, err := openClasses(AgentConfig{DataDir: t.TempDir(), Runtimes: []string{word}, Log: log}, images)
	if err != nil || classes["runc"].Version == "" {
		t.Fatalf("%+v %v", classes, err)
	}
	if err := closeAll(); err != nil {
		t.Error(err)
	}
}
