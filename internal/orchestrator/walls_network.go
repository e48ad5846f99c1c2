//go:build linux && cgo

package orchestrator

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"

	"rockpool/internal/orchestrator/network"
)

// defaultName begins the names of interfaces and tables of a node with the default range; one with another range has one of its own, so that several
// nodes on a machine do not meet.
const defaultName = "rockpool"

func openNetworks(cfg AgentConfig) (*network.Manager, error) {
	c := network.Config{Dir: filepath.Join(cfg.DataDir, "network"), Name: defaultName, DNS: cfg.Network.DNS,
		CNIConfigs: cfg.Network.CNIConfigs, CNIPlugins: cfg.Network.CNIPlugins, Log: cfg.Log}
	if cfg.Network.Range != "" {
		var err error
		if c.Range, err = netip.ParsePrefix(cfg.Network.Range); err != nil {
			return nil, fmt.Errorf("network range %q: a prefix such as %s is wanted", cfg.Network.Range, DefaultNetwork().Range)
		}
	}
	if cfg.Network.Range != DefaultNetwork().Range {
		sum := sha256.Sum256([]byte(cfg.Network.Range))
		c.Name = "rp" + hex.EncodeToString(sum[:3])
	}
	return network.New(c)
}
