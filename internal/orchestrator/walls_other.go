//go:build !linux || !cgo

package orchestrator

import (
	"errors"

	"rockpool/internal/orchestrator/driver/cdi"
)

// openWalls has no sandbox to offer. Jobs made for Docker run where there is an engine.
func openWalls(cfg AgentConfig, _ cdi.Maker) (walls, error) {
	if cfg.DockerEngine == "" {
		return walls{}, errors.New("this build has no sandbox, which needs Linux and cgo: build it there with gcc and CGO_ENABLED=1, set orchestrator.dockerengine to a Docker Engine, or point nomad.address at a cluster")
	}
	drivers, err := openEngine(cfg, nil)
	if err != nil {
		return walls{}, err
	}
	return walls{drivers: drivers}, nil
}
