//go:build linux && cgo

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
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
	images, err := image.New(image.Config{
		Dir: filepath.Join(cfg.DataDir, "images"), LocalDirs: cfg.Images.LocalDirs, Mirrors: cfg.Images.Mirrors, PlainHTTP: cfg.Images.PlainHTTP,
		Credentials: cfg.Images.Credentials, MaxBytes: cfg.Images.MaxBytes, MaxAge: cfg.Images.MaxAge, InUse: runtime.Lowers, Log: cfg.Log,
	})
	if err != nil {
		return walls{}, err
	}
	if err := selfTest(runtime, images); err != nil {
		return walls{}, fmt.Errorf("this machine cannot run a sandbox: %w", err)
	}
	logFences(cfg.Log, runtime.Fences())
	return walls{
		drivers: sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Images: images},
			sandboxed.Name, sandboxed.NameDocker, sandboxed.NameExec),
		images:   images,
		services: []lifecycle.Service{{Name: "images", Run: images.Run}},
		close:    runtime.Close,
	}, nil
}

// selfTest runs one program in one sandbox. What a probe cannot see, such as a security module that forbids a mount, shows here and at
// start, not with the first learner; and what stands is known from then on.
func selfTest(runtime *sandbox.Runtime, images *image.Store) (err error) {
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
