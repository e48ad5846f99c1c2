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
	images, err := image.New(image.Config{Dir: t.TempDir()})
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
			err := open(t, AgentConfig{DataDir: t.TempDir(), Runtimes: c.runtimes, Log: log}, images, &classes{})
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
	if err := open(t, AgentConfig{DataDir: t.TempDir(), Runtimes: []string{word, word}, Log: log}, images, &classes{}); err == nil || !strings.Contains(err.Error(), "different") {
		t.Errorf("one name twice: %v", err)
	}
	var opened classes
	if err := open(t, AgentConfig{DataDir: t.TempDir(), Runtimes: []string{word}, Log: log}, images, &opened); err != nil || opened.byName["runc"].Version == "" {
		t.Fatalf("%+v %v", opened, err)
	}
}

// open opens runtimes, and closes them at the end of the test.
func open(t *testing.T, cfg AgentConfig, images *image.Store, c *classes) error {
	t.Helper()
	err := c.open(cfg, images)
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	return err
}
