package flagstyle_test

import (
	"slices"
	"testing"

	"github.com/spf13/cobra"

	"rockpool/cmd/flagstyle"
)

func TestOneHyphenIsEnough(t *testing.T) {
	for _, c := range []struct {
		args []string
		dev  bool
		port int
		rest []string
	}{
		{[]string{"agent", "-dev", "-port", "7"}, true, 7, nil},
		{[]string{"agent", "--dev", "-port=7"}, true, 7, nil},
		{[]string{"agent", "--", "-dev", "x"}, false, 0, []string{"-dev", "x"}},
	} {
		var dev bool
		var port int
		var rest []string
		root := &cobra.Command{Use: "x"}
		agent := &cobra.Command{Use: "agent", Run: func(_ *cobra.Command, a []string) { rest = a }}
		agent.Flags().BoolVar(&dev, "dev", false, "")
		agent.Flags().IntVar(&port, "port", 0, "")
		root.AddCommand(agent)
		flagstyle.Accept(root, c.args)
		if err := root.Execute(); err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		if dev != c.dev || port != c.port || !slices.Equal(rest, c.rest) {
			t.Errorf("%q: dev %v, port %d, rest %q", c.args, dev, port, rest)
		}
	}
}
