package docker

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/registry"
)

// hub is the name under which Docker's tools keep the credentials of docker.io.
const hub = "https://index.docker.io/v1/"

// readCredentials finds a registry in a Docker config file ("" = the user's), or returns nil. Helper programs are not run: what they would give has to be in the
// file, or in the job's auth block.
func readCredentials(path, domain string) (*registry.AuthConfig, error) {
	named := path != ""
	if !named {
		dir := os.Getenv("DOCKER_CONFIG")
		if home, err := os.UserHomeDir(); dir == "" && err == nil {
			dir = filepath.Join(home, ".docker")
		}
		path = filepath.Join(dir, "config.json")
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("credentials of registries: %w", err)
	}
	var file struct {
		Auths       map[string]registry.AuthConfig
		CredHelpers map[string]string
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("credentials of registries: %s: %w", path, err)
	}
	if domain == "docker.io" {
		domain = hub
	}
	if _, helped := file.CredHelpers[domain]; helped {
		return nil, fmt.Errorf("credentials of registries: %s leaves those of %s to a helper program, which is not run: put them into its auths, or into the job's auth block", path, domain)
	}
	for name, a := range file.Auths {
		if name != domain && strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://"), "/") != domain {
			continue
		}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(text), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("credentials of registries: those of %s in %s are damaged", name, path)
			}
			a.Username, a.Password, a.Auth = user, strings.TrimRight(password, "\x00"), ""
		}
		return &a, nil
	}
	return nil, nil
}
