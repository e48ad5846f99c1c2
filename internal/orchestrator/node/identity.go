package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"rockpool/internal/ident"
)

// Identity is who a node is, and how it proves that.
type Identity struct {
	ID     string
	Secret string
}

// LoadIdentity reads the identity kept in dataDir, or makes one and keeps it.
func LoadIdentity(dataDir string) (Identity, error) {
	path := filepath.Join(dataDir, "identity.json")
	var id Identity
	err := readJSON(path, &id)
	switch {
	case err == nil && ident.Valid(id.ID) && id.Secret != "":
		return id, nil
	case err == nil:
		return Identity{}, fmt.Errorf("node identity: %s holds no valid identity; remove it to make the node a new one", path)
	case !errors.Is(err, fs.ErrNotExist):
		return Identity{}, fmt.Errorf("node identity: %w", err)
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return Identity{}, fmt.Errorf("node identity: %w", err)
	}
	id = Identity{ID: ident.New(), Secret: ident.New()}
	// The servers will know the node by it: it must survive a power failure.
	if err := writeJSON(path, id, true); err != nil {
		return Identity{}, fmt.Errorf("node identity: %w", err)
	}
	return id, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces the file at path whole, readable by its owner only. With sync it also survives a power failure.
func writeJSON(path string, v any, sync bool) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // one writer at a time
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil || !sync {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
