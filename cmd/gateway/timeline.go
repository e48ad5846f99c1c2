package main

import (
	"github.com/spf13/cobra"

	"rockpool/internal/client"
)

func timelineCommand() *cobra.Command {
	c := &cobra.Command{Use: "timeline", Short: "Show where the time of runners and requests went", Args: cobra.NoArgs}
	t := target(c, true)
	var w client.Wanted
	c.Flags().StringVar(&w.Runner, "runner", "", "only what has to do with this runner")
	c.Flags().StringVar(&w.Execution, "execution", "", "only this execution")
	c.Flags().IntVar(&w.Limit, "limit", 10, "so many of the newest, 100 at most")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return client.ShowTimelines(c.Context(), *t, w, c.OutOrStdout())
	}
	return c
}
