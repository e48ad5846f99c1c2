//go:build linux && cgo

package orchestrator

import (
	"path/filepath"
	"strings"

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
	attributes := map[string]string{}
	for _, f := range runtime.Fences() {
		state := "in force"
		if !f.InForce {
			state = "not in force"
		}
		attributes["rockpool.fence."+strings.ReplaceAll(f.Name, " ", "_")] = strings.TrimSuffix(state+": "+f.Detail, ": ")
		entry := cfg.Log.WithFields(logging.Fields{"fence": f.Name, "in_force": f.InForce, "detail": f.Detail})
		if f.InForce {
			entry.Debug("fence")
		} else {
			entry.Warn("a fence is not in force")
		}
	}
	return walls{
		drivers:    sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(runtime), Images: images}, "sandbox", "docker", "exec"),
		attributes: func() map[string]string { return attributes },
		close:      runtime.Close,
	}, nil
}
