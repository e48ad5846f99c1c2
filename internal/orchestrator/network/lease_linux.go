package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"rockpool/internal/ident"
)

// lease is what an allocation holds, as it is kept on disk. It is written before anything is made and removed after everything is gone.
type lease struct {
	AllocID string
	Request Request
	Address netip.Addr // on a bridge
	Ready   bool       // everything was made
	CNI     *cniResult `json:",omitempty"`
}

// leases are one file each.
type leases struct{ dir string }

func (l leases) path(id string) string { return filepath.Join(l.dir, id+".json") }

func (l leases) write(x *lease) error {
	b, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("keep network lease: %w", err)
	}
	// Not synced: what a power failure takes from it, it has taken from the kernel too.
	temporary := l.path(x.AllocID) + ".new"
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("keep network lease: %w", err)
	}
	if err := os.Rename(temporary, l.path(x.AllocID)); err != nil {
		return fmt.Errorf("keep network lease: %w", err)
	}
	return nil
}

func (l leases) remove(id string) error {
	if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network lease: %w", err)
	}
	return nil
}

// read returns all leases. Of one whose file cannot be read only the name is known.
func (l leases) read() (all []*lease, err error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("read network leases: %w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !ident.ValidName(id) {
			if strings.HasSuffix(e.Name(), ".new") {
				_ = os.Remove(filepath.Join(l.dir, e.Name()))
			}
			continue
		}
		x := &lease{}
		b, err := os.ReadFile(l.path(id))
		if err == nil {
			err = json.Unmarshal(b, x)
		}
		if err != nil || x.AllocID != id {
			x = &lease{AllocID: id}
		}
		all = append(all, x)
	}
	return all, nil
}
