//go:build linux && cgo

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"rockpool/internal/image"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox"
)

// maxSandboxes is how many native sandboxes a node may have at a time. Their user ids end below those of OCI runtimes.
const maxSandboxes = 8192

// tidyAfter is how long the control groups of an ended sandbox stay: longer than a burst of programs that a full pool answers, shorter than anybody looks for them.
const tidyAfter = 3 * time.Second

// openWalls makes the native sandbox's drivers. Jobs written for Docker run in it too. Devices without a specification of the operator's get one by specify; nil = none.
func openWalls(cfg AgentConfig, specify cdi.Maker) (_ walls, err error) {
	runtime, err := sandbox.New(sandbox.Config{
		Dir: filepath.Join(cfg.DataDir, "sandboxes"), CgroupParent: "rockpool", MaxSandboxes: maxSandboxes, AllowUnconfined: cfg.AllowUnconfined,
		TidyAfter: tidyAfter, Log: cfg.Log,
	})
	if err != nil {
		return walls{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, runtime.Close())
		}
	}()
	var classes classes // the store asks what stands on it once everything is open
	images, err := image.New(image.Config{
		Dir: filepath.Join(cfg.DataDir, "images"), LocalDirs: cfg.Images.LocalDirs, Mirrors: cfg.Images.Mirrors, PlainHTTP: cfg.Images.PlainHTTP,
		Credentials: cfg.Images.Credentials, MaxBytes: cfg.Images.MaxBytes, MaxAge: cfg.Images.MaxAge, Log: cfg.Log,
		InUse: func() ([]string, error) { return classes.lowers(runtime) },
	})
	if err != nil {
		return walls{}, err
	}
	if err := selfTest(runtime, images); err != nil {
		return walls{}, err
	}
	networks, err := openNetworks(cfg)
	if err != nil {
		return walls{}, err
	}
	closeAll := func() error { return errors.Join(classes.close(), networks.Close()) }
	if err := classes.open(cfg, images); err != nil {
		return walls{}, errors.Join(err, closeAll())
	}
	names := []string{sandboxed.Name, sandboxed.NameExec}
	var drivers []driver.Driver
	if cfg.DockerEngine == "" {
		names = append(names, sandboxed.NameDocker)
	} else if drivers, err = openEngine(cfg, filesOf); err != nil {
		return walls{}, errors.Join(err, closeAll())
	}
	drivers = append(drivers, sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Classes: classes.byName, Images: images,
		Devices: cdi.New(cfg.Log, specify, cfg.CDIDirs...).Resolve}, names...)...)
	logFences(cfg.Log, driver.Fences(slices.Values(drivers), networks))
	return walls{
		images:   images,
		networks: networks,
		services: []lifecycle.Service{{Name: "images", Run: images.Run}, {Name: "networks of runners", Run: networks.Run}},
		drivers:  drivers,
		close:    func() error { return errors.Join(closeAll(), runtime.Close()) },
	}, nil
}

// filesOf gives access to the files of a container by the same descriptors as to those of a sandbox.
func filesOf(root *os.File, idBase uint32, workDir string) driver.Files {
	return sandboxed.Files(sandbox.FilesOf(root, idBase, sandbox.Root{WorkDir: workDir}))
}

// selfTest tries to get out of a sandbox on the node's own files. What a probe cannot see, such as a security module that forbids a mount, shows here
// and at start, not with the first learner; and what stands is known from then on.
func selfTest(runtime *sandbox.Runtime, images *image.Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	host, err := images.Acquire(ctx, image.Host, image.Options{})
	if err != nil {
		return fmt.Errorf("self-test of the sandbox: %w", err)
	}
	err = runtime.SelfTest(ctx, host.Root)
	if errors.Is(err, sandbox.ErrNotContained) {
		return fmt.Errorf("%w (set orchestrator.allowunconfined to start all the same, where all code is trusted)", err)
	}
	return err
}

func logFences(log logging.Logger, fences []driver.Fence) {
	var standing []string
	for _, f := range fences {
		line := log.WithFields(logging.Fields{"fence": f.Name, "wall": f.Wall, "in_force": f.InForce, "detail": f.Detail})
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
