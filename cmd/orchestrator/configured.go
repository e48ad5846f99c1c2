package main

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"rockpool/internal/orchestrator"
)

// tokenVariable holds a management token for a start. It is in no file, so that files can be shown.
const tokenVariable = "ROCKPOOL_MANAGEMENT_TOKEN"

// runConfigured runs the agent that files describe.
func runConfigured(cmd *cobra.Command, paths []string) error {
	var others []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "config" {
			others = append(others, "-"+f.Name)
		}
	})
	if slices.Sort(others); len(others) > 0 {
		return fmt.Errorf("with -config, settings belong into the file: %v", others)
	}
	c, err := orchestrator.NewConfigured(paths, os.Stderr, os.Getenv(tokenVariable))
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	return c.Run(cmd.Context(), hup)
}
