//go:build linux && cgo

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"rockpool/internal/image"
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
	images, err := image.NewStore(filepath.Join(cfg.DataDir, "images"))
	if err != nil {
		return walls{}, err
	}
	if err := selfTest(runtime, images); err != nil {
		return walls{}, err
	}
	logFences(cfg.Log, runtime.Fences())
	return walls{
		drivers: sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Images: images},
			sandboxed.Name, sandboxed.NameDocker, sandboxed.NameExec),
		close: runtime.Close,
	}, nil
}

// selfTest tries to get out of a sandbox on the node's own files. What a probe cannot see, such as a security module that forbids a mount, shows here
// and at start, not with the first learner; and what stands is known from then on.
func selfTest(runtime *sandbox.Runtime, images *image.Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	root, err := images.Resolve(ctx, image.Host)
	if err != nil {
		return fmt.Errorf("self-test of the sandbox: %w", err)
	}
	err = runtime.SelfTest(ctx, root)
	if errors.Is(err, sandbox.ErrNotContained) {
		return fmt.Errorf("%w (set orchestrator.allowunconfined to start all the same, where all code is trusted)", err)
	}
	return err
}

func logFences(log logging.Logger, fences []sandbox.Fence) {
	var standing []string
	for _, f := range fences {
		line := log.WithFields(logging.Fields{"fence": f.Name, "wall": string(f.Wall), "in_force": f.InForce, "detail": f.Detail})
		switch {
		case f.Note:
			line.Info("about this machine")
		case f.InForce:
			standing = append(standing, f.Name)
			line.Debug("a fence is in force")
		default:
			line.Warn("a fence is not in force")
		}
	}
	log.WithField("fences", standing).Info("fences in force, as found by a sandbox that programs tried to get out of")
}
