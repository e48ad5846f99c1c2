package model

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ComputeClass is the digest of everything by which a job may choose among nodes, but for what is a node's own: attributes and meta whose names start
// with "unique.". Nodes with equal digests need to be looked at once. It is the value of ComputedClass.
func (n *Node) ComputeClass() string {
	h := sha256.New()
	put := func(parts ...string) {
		for _, p := range parts {
			_, _ = io.WriteString(h, strconv.Itoa(len(p))+":"+p) // a digest takes everything
		}
	}
	table := func(m map[string]string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !strings.HasPrefix(k, "unique.") {
				put(k, m[k])
			}
		}
		put("")
	}
	put(n.Datacenter, n.NodePool, n.NodeClass)
	table(n.Attributes)
	table(n.Meta)
	for _, name := range slices.Sorted(maps.Keys(n.Drivers)) {
		if d := n.Drivers[name]; d != nil {
			put(name, strconv.FormatBool(d.Detected && d.Healthy))
			table(d.Attributes)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.HostVolumes)) {
		if v := n.HostVolumes[name]; v != nil {
			put(name, strconv.FormatBool(v.ReadOnly))
		}
	}
	return "v1:" + hex.EncodeToString(h.Sum(nil)[:8])
}
