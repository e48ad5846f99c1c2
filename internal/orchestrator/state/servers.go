package state

import (
	"slices"
	"time"

	"rockpool/internal/fault"
)

const (
	tableAutopilot        = "autopilot"
	tableIntroductionKeys = "introduction_keys"
	tableIntroductions    = "introductions"
)

// Autopilot says when a server is healthy and what becomes of dead ones.
type Autopilot struct {
	CleanupDeadServers      bool
	LastContactThreshold    time.Duration
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime time.Duration
	CreateIndex             uint64
	ModifyIndex             uint64
}

// DefaultAutopilot holds until an operator sets something else; the numbers are Nomad's.
func DefaultAutopilot() *Autopilot {
	return &Autopilot{CleanupDeadServers: true, LastContactThreshold: 200 * time.Millisecond, MaxTrailingLogs: 250, ServerStabilizationTime: 10 * time.Second}
}

// IntroductionKey signs the tokens that nodes are introduced by. It is a secret: whoever reads the state, or a snapshot of it, can introduce nodes.
type IntroductionKey struct {
	ID   string
	Seed []byte // of an Ed25519 key, 32 bytes
}

// introduction is a token that has served.
type introduction struct {
	Token   string
	NodeID  string
	Expires int64 // unix ns
}

func serverTables() []tableDef {
	return []tableDef{
		define(tableAutopilot, 20, false, func(_ *Autopilot, to []string) []string { return append(to, "config") }, nil),
		define(tableIntroductionKeys, 21, false, func(_ *IntroductionKey, to []string) []string { return append(to, "key") }, nil),
		define(tableIntroductions, 22, false, func(i *introduction, to []string) []string { return append(to, i.Token) }, nil),
	}
}

// Autopilot is the configuration in force.
func (s *Snapshot) Autopilot() *Autopilot {
	if c := first[Autopilot](s, nil, tableAutopilot, "config"); c != nil {
		return c
	}
	return DefaultAutopilot()
}

// IntroductionKey is the key that introduction tokens are signed by, or nil.
func (s *Snapshot) IntroductionKey() *IntroductionKey {
	return first[IntroductionKey](s, nil, tableIntroductionKeys, "key")
}

// Introduced is the node that a token has served, or "".
func (s *Snapshot) Introduced(token string) string {
	if i := first[introduction](s, nil, tableIntroductions, token); i != nil {
		return i.NodeID
	}
	return ""
}

// SetAutopilot replaces the configuration; with cas only if its index is at. The store keeps c.
func (t *Tx) SetAutopilot(c *Autopilot, cas bool, at uint64) bool {
	old := t.Autopilot()
	if cas && old.ModifyIndex != at {
		return false
	}
	c.CreateIndex, c.ModifyIndex = t.index, t.index
	if old.CreateIndex != 0 {
		c.CreateIndex = old.CreateIndex
	}
	t.put(tableAutopilot, c)
	return true
}

// SetIntroductionKey keeps the first key that is given.
func (t *Tx) SetIntroductionKey(k *IntroductionKey) {
	if t.IntroductionKey() == nil {
		t.put(tableIntroductionKeys, k)
	}
}

// UseIntroduction spends a token on a node, and forgets those that have expired. A node that is known has an identity of its own and needs none; an entry that
// comes twice, by the same node with the same secret, is no error.
func (t *Tx) UseIntroduction(token, nodeID, secret string, expires int64) error {
	if by := t.Introduced(token); by != "" && by != nodeID {
		return fault.New(fault.Forbidden, "the introduction token has served another node")
	}
	if n := t.Node(nil, nodeID); n != nil && n.SecretID != secret {
		return fault.New(fault.Forbidden, "the node's secret differs from the known one")
	}
	for _, i := range slices.Collect(all[introduction](&t.Snapshot, nil, tableIntroductions, "id")) {
		if i.Expires < t.now {
			t.delete(tableIntroductions, i)
		}
	}
	t.put(tableIntroductions, &introduction{token, nodeID, expires})
	return nil
}
