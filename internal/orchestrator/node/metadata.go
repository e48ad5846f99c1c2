package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/wire"
)

const (
	maxMetaKeys  = 128
	maxMetaValue = 4 << 10 // bytes
)

var metaKey = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

func metadataPath(dataDir string) string { return filepath.Join(dataDir, "metadata.json") }

// loadMetadata reads what was changed of the node's metadata.
func loadMetadata(dataDir string) (map[string]*string, error) {
	dynamic := map[string]*string{}
	if err := readJSON(metadataPath(dataDir), &dynamic); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("node metadata: %s: %w; remove it to start with that of the configuration", metadataPath(dataDir), err)
	}
	return dynamic, nil
}

// metadata is that of the configuration with the changes. The caller holds mu.
func (a *Agent) metadata() map[string]string {
	all := maps.Clone(a.cfg.Meta)
	for k, v := range a.dynamic {
		if v == nil {
			delete(all, k)
			continue
		}
		if all == nil {
			all = map[string]string{}
		}
		all[k] = *v
	}
	return all
}

func (a *Agent) currentMeta() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.metadata()
}

// Metadata is the node's metadata, and where each value is from.
func (a *Agent) Metadata() *wire.NodeMetaResponse {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &wire.NodeMetaResponse{Meta: a.metadata(), Dynamic: maps.Clone(a.dynamic), Static: maps.Clone(a.cfg.Meta)}
	if out.Meta == nil {
		out.Meta = map[string]string{}
	}
	return out
}

// ApplyMetadata changes it. The change survives a restart; the servers learn of it soon.
func (a *Agent) ApplyMetadata(_ context.Context, change map[string]*string) (*wire.NodeMetaResponse, error) {
	if len(change) == 0 {
		return nil, fault.New(fault.Invalid, "missing required Meta object")
	}
	for k, v := range change {
		if !metaKey.MatchString(k) {
			return nil, fault.New(fault.Invalid, "metadata key %q is not 1 to 128 letters, digits, dots, hyphens or underscores", k)
		}
		if v != nil && len(*v) > maxMetaValue {
			return nil, fault.New(fault.Invalid, "metadata %s is longer than %d bytes", k, maxMetaValue)
		}
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	a.mu.Lock()
	next := maps.Clone(a.dynamic)
	for k, v := range change {
		if _, static := a.cfg.Meta[k]; v == nil && !static {
			delete(next, k) // nothing is left to hide
			continue
		}
		next[k] = v
	}
	a.mu.Unlock()
	if len(next) > maxMetaKeys {
		return nil, fault.New(fault.Invalid, "a node takes %d keys of metadata, not %d", maxMetaKeys, len(next))
	}
	if err := writeJSON(metadataPath(a.cfg.DataDir), next, true); err != nil {
		return nil, fmt.Errorf("keep node metadata: %w", err)
	}
	a.mu.Lock()
	a.dynamic = next
	a.mu.Unlock()
	select {
	case a.describing <- struct{}{}:
	default:
	}
	return a.Metadata(), nil
}
