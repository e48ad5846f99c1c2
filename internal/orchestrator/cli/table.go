package cli

import "slices"

// Table is all commands but those that run an agent.
func Table() []Command {
	return slices.Concat(jobCommands, nodeCommands, allocCommands, serverCommands, accessCommands, tlsCommands, otherCommands)
}
