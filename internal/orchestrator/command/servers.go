package command

import (
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Names of entries about servers and the introduction of nodes.
const (
	NameAutopilotConfig = "AutopilotConfig"
	NameIntroductionKey = "IntroductionKey"
)

// servers are the entries about servers and the introduction of nodes.
var servers = []row{
	define(20, NameAutopilotConfig, applyAutopilotConfig),
	define(21, NameIntroductionKey, applyIntroductionKey),
	define(22, NameNodeRegistered, applyNodeIntroduce),
}

// AutopilotConfig replaces autopilot's configuration. The result is a bool: it was done.
type AutopilotConfig struct {
	Now     int64
	Config  *state.Autopilot
	CAS     bool
	AtIndex uint64
}

func (e *AutopilotConfig) at() int64 { return e.Now }

func applyAutopilotConfig(tx *state.Tx, e *AutopilotConfig) (any, error) {
	return tx.SetAutopilot(e.Config, e.CAS, e.AtIndex), nil
}

// IntroductionKey makes the key that introduction tokens are signed by, unless there is one.
type IntroductionKey struct {
	Now int64
	Key *state.IntroductionKey
}

func (e *IntroductionKey) at() int64 { return e.Now }

func applyIntroductionKey(tx *state.Tx, e *IntroductionKey) (any, error) {
	tx.SetIntroductionKey(e.Key)
	return nil, nil
}

// NodeIntroduce registers a node that was not known, by a token that serves once. The error is a conflict when the token has served another node.
type NodeIntroduce struct {
	Now     int64
	Token   string // its id
	Expires int64  // unix ns; until then it is remembered
	Node    *model.Node
	Evals   []*model.Evaluation
}

func (e *NodeIntroduce) at() int64 { return e.Now }

func applyNodeIntroduce(tx *state.Tx, e *NodeIntroduce) (any, error) {
	if err := tx.UseIntroduction(e.Token, e.Node.ID, e.Node.SecretID, e.Expires); err != nil {
		return nil, err
	}
	return applyNodeRegister(tx, &NodeRegister{Now: e.Now, Node: e.Node, Evals: e.Evals})
}
