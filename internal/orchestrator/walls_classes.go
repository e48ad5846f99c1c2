//go:build linux && cgo

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox"
	"rockpool/internal/sandbox/oci"
)

// classes are the OCI runtimes that environments may ask for.
type classes struct {
	byName   map[string]sandboxed.Class
	runtimes []*oci.Runtime
}

// open opens those that are configured. One that does not work is an error.
func (c *classes) open(cfg AgentConfig, images *image.Store) error {
	c.byName = map[string]sandboxed.Class{}
	for _, word := range cfg.Runtimes {
		name, program, found := strings.Cut(word, "=")
		if _, twice := c.byName[name]; twice || !found {
			return fmt.Errorf("runtimes: %q: a list of different name=path is wanted, such as runsc=/usr/local/bin/runsc", word)
		}
		r, err := oci.New(classConfig(cfg, name, program))
		if err != nil {
			return fmt.Errorf("runtimes: %w: correct the path, or take it off the list", err)
		}
		c.runtimes = append(c.runtimes, r)
		c.byName[name] = sandboxed.OCI(r)
		if err := tryOut(c.byName[name].Runtime, images); err != nil {
			return fmt.Errorf("runtimes: %s (%s) cannot run a sandbox on this machine: %w", name, program, err)
		}
		cfg.Log.WithFields(logging.Fields{"runtime": name, "program": program, "version": r.Version()}).Info("environments may ask for an OCI runtime")
	}
	return c.discardOthers(cfg)
}

func (c *classes) close() error {
	var errs []error
	for _, r := range c.runtimes {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// lowers are the directories of images that sandboxes stand on, whichever runtime they are in.
func (c *classes) lowers(native *sandbox.Runtime) ([]string, error) {
	all, err := native.Lowers()
	for _, r := range c.runtimes {
		if err != nil {
			return nil, err
		}
		var some []string
		some, err = r.Lowers()
		all = append(all, some...)
	}
	return all, err
}

func classConfig(cfg AgentConfig, name, program string) oci.Config {
	return oci.Config{Name: name, Program: program, Dir: filepath.Join(cfg.DataDir, "oci", name), CgroupParent: "rockpool", Log: cfg.Log}
}

// discardOthers ends what runs in runtimes that an earlier start had and this one has not: no driver would find it.
func (c *classes) discardOthers(cfg AgentConfig) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	had, err := os.ReadDir(filepath.Join(cfg.DataDir, "oci"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range had {
		if _, has := c.byName[e.Name()]; !has {
			cfg.Log.WithField("runtime", e.Name()).Warn("an OCI runtime is configured no more; what ran in it ends")
			errs = append(errs, oci.Discard(ctx, classConfig(cfg, e.Name(), "")))
		}
	}
	return errors.Join(errs...)
}

// tryOut runs one program in one sandbox, so that a runtime that does not work shows at the start and not with the first learner.
func tryOut(runtime sandboxed.Runtime, images *image.Store) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	host, err := images.Acquire(ctx, image.Host, image.Options{})
	if err != nil {
		return err
	}
	s, err := runtime.Create(ctx, sandbox.Spec{ID: "self-test-" + ident.New(), Root: host.Root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Destroy(ctx)) }()
	e, err := s.Exec(ctx, sandbox.ExecSpec{ID: "true", Argv: []string{"true"}, MergeStderr: true})
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, e.Stdout()); err != nil {
		return err
	}
	select {
	case <-e.Done():
	case <-ctx.Done():
		return errors.New("the program `true` did not end")
	}
	if result, err := e.Result(); err != nil || result.ExitCode != 0 {
		return errors.Join(fmt.Errorf("the program `true` ended with %d", result.ExitCode), err)
	}
	return nil
}
