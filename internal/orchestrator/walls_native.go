//go:build linux && cgo

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox"
)

// openWalls makes the native sandbox's drivers. Jobs written for Docker run in it too.
func openWalls(cfg AgentConfig) (_ walls, err error) {
	runtime, err := sandbox.New(sandbox.Config{
		Dir: filepath.Join(cfg.DataDir, "sandboxes"), CgroupParent: "rockpool", MaxSandboxes: 4096, AllowUnconfined: cfg.AllowUnconfined, Log: cfg.Log,
	})
	if err != nil {
		return walls{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, runtime.Close())
		}
	}()
	images, err := image.NewStore(filepath.Join(cfg.DataDir, "images"))
	if err != nil {
		return walls{}, err
	}
	if err := selfTest(runtime, images); err != nil {
		return walls{}, fmt.Errorf("this machine cannot run a sandbox: %w", err)
	}
	logFences(cfg.Log, runtime.Fences())
	names := []string{sandboxed.Name, sandboxed.NameExec}
	var drivers []driver.Driver
	if cfg.DockerEngine == "" {
		names = append(names, sandboxed.NameDocker)
	} else if drivers, err = openEngine(cfg, filesOf); err != nil {
		return walls{}, err
	}
	drivers = append(drivers, sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Images: images}, names...)...)
	return walls{drivers: drivers, close: runtime.Close}, nil
}

// filesOf gives access to the files of a container by the same descriptors as to those of a sandbox.
func filesOf(root *os.File, idBase uint32, workDir string) driver.Files {
	return sandboxed.Files(sandbox.FilesOf(root, idBase, sandbox.Root{WorkDir: workDir}))
}

// selfTest runs one program in one sandbox. What a probe cannot see, such as a security module that forbids a mount, shows here and at
// start, not with the first learner; and what stands is known from then on.
func selfTest(runtime *sandbox.Runtime, images *image.Store) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	root, err := images.Resolve(ctx, image.Host)
	if err != nil {
		return err
	}
	s, err := runtime.Create(ctx, sandbox.Spec{ID: "self-test-" + ident.New(), Root: root})
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

func logFences(log logging.Logger, fences []sandbox.Fence) {
	var standing []string
	for _, f := range fences {
		if f.InForce {
			standing = append(standing, f.Name)
			continue
		}
		log.WithFields(logging.Fields{"fence": f.Name, "detail": f.Detail}).Warn("a fence is not in force")
	}
	log.WithField("fences", standing).Info("fences in force, as found by a sandbox that was tried")
}
