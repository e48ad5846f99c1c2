package orchestrator

import (
	"os"
	"path/filepath"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
	"rockpool/internal/orchestrator/node"
)

// openEngine makes the driver of a Docker Engine. The engine need not be there yet.
func openEngine(cfg AgentConfig, files func(root *os.File, idBase uint32, workDir string) driver.Files) ([]driver.Driver, error) {
	identity, err := node.LoadIdentity(filepath.Join(cfg.DataDir, "node"))
	if err != nil {
		return nil, err
	}
	d, err := docker.New(docker.Config{Endpoint: cfg.DockerEngine, Networks: cfg.DockerNetworks, Node: identity.ID, Credentials: cfg.Images.Credentials, Files: files, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	return []driver.Driver{d}, nil
}
