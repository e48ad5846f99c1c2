package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config/configfile"
	"github.com/moby/moby/api/types/registry"
)

// readCredentials finds a registry's in a Docker config file ("" = the user's), or by the helper program that it names. Without any the result is empty.
func readCredentials(path, domain string) (registry.AuthConfig, error) {
	named := path != ""
	if !named {
		dir := os.Getenv("DOCKER_CONFIG")
		if home, err := os.UserHomeDir(); dir == "" && err == nil {
			dir = filepath.Join(home, ".docker")
		}
		path = filepath.Join(dir, "config.json")
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return registry.AuthConfig{}, nil
	}
	if err != nil {
		return registry.AuthConfig{}, fmt.Errorf("credentials of registries: %w", err)
	}
	defer f.Close()
	config := configfile.New(path)
	if err := config.LoadFromReader(f); err != nil {
		return registry.AuthConfig{}, fmt.Errorf("credentials of registries: %s: %w", path, err)
	}
	a, err := config.GetAuthConfig(domain)
	if err != nil {
		return registry.AuthConfig{}, fmt.Errorf("credentials of registry %s: %w", domain, err)
	}
	return registry.AuthConfig(a), nil
}
