package main

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"rockpool/cmd/flagstyle"
	"rockpool/internal/orchestrator/cli"
)

// groups say what commands of several words have in common.
var groups = map[string]string{
	"job": "Work with jobs", "node": "Work with nodes", "alloc": "Work with allocations", "server": "Look at servers", "operator": "Run a cluster",
	"operator raft": "Work with the servers that vote", "operator snapshot": "Save and restore the state", "operator autopilot": "Look at the servers' health",
	"operator gossip": "Protect the membership protocol", "operator gossip keyring": "Work with its keys", "acl": "Work with tokens", "namespace": "Work with namespaces", "tls": "Make certificates",
	"tls ca": "Work with authorities", "tls cert": "Work with certificates", "system": "Work with the servers' state", "eval": "Look at evaluations",
}

// addRemote hangs the commands of the table into the tree.
func addRemote(root *cobra.Command) {
	for _, row := range cli.Table() {
		words := strings.Fields(row.Path)
		parent := root
		for i := range words[:len(words)-1] {
			parent = group(parent, words[i], groups[strings.Join(words[:i+1], " ")])
		}
		cmd := &cobra.Command{
			Use: words[len(words)-1] + " " + row.Args, Short: row.Short, Long: row.Long, Args: cobra.ArbitraryArgs, DisableFlagsInUseLine: true,
		}
		if row.Program {
			cmd.Annotations = map[string]string{flagstyle.Verbatim: "yes"}
		}
		run := row.Prepare(cmd.Flags())
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			return run(cmd.Context(), cli.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, args)
		}
		parent.AddCommand(cmd)
	}
}

func group(parent *cobra.Command, name, short string) *cobra.Command {
	for _, c := range parent.Commands() {
		if c.Name() == name {
			return c
		}
	}
	c := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	parent.AddCommand(c)
	return c
}

// code is the exit code of an outcome.
func code(ctx context.Context, err error) int {
	if err != nil && ctx.Err() != nil {
		return 130
	}
	return cli.Code(err)
}
