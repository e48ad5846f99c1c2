//go:build !linux || !cgo

package orchestrator

import "errors"

func openWalls(AgentConfig) (walls, error) {
	return walls{}, errors.New("this build has no sandbox, which needs Linux and cgo: build it there with gcc and CGO_ENABLED=1, or point nomad.address at a cluster")
}
