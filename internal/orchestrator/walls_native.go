//go:build linux && cgo

package orchestrator

import (
	"path/filepath"

	"rockpool/internal/image"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox"
)

// openWalls makes the native sandbox's drivers. Jobs written for Docker run in it too.
func openWalls(cfg AgentConfig) (walls, error) {
	runtime, err := sandbox.New(sandbox.Config{
		Dir: filepath.Join(cfg.DataDir, "sandboxes"), CgroupParent: "rockpool", MaxSandboxes: 4096, AllowUnconfined: cfg.AllowUnconfined, Log: cfg.Log,
	})
	if err != nil {
		return walls{}, err
	}
	images, err := image.NewStore(filepath.Join(cfg.DataDir, "images"))
	if err != nil {
		return walls{close: runtime.Close}, err
	}
	for _, f := range runtime.Fences() {
		entry := cfg.Log.WithFields(logging.Fields{"fence": f.Name, "in_force": f.InForce, "detail": f.Detail})
		if f.InForce {
			entry.Debug("fence")
		} else {
			entry.Warn("a fence is not in force")
		}
	}
	return walls{
		drivers: sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Images: images}, "sandbox", "docker", "exec"),
		close:   runtime.Close,
	}, nil
}
