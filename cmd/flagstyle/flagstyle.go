// Package flagstyle lets long flags be written with one hyphen too (-dev, -config), as Go's own tools, Nomad and Poseidon write them; cobra alone
// takes -dev for three flags of one letter.
package flagstyle

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Accept makes root take its long flags with one hyphen or two. Everything after -- stays as it is.
func Accept(root *cobra.Command, args []string) {
	long := map[string]bool{"help": true, "version": true}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { long[f.Name] = true })
		c.PersistentFlags().VisitAll(func(f *pflag.Flag) { long[f.Name] = true })
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	out := make([]string, 0, len(args))
	for i, a := range args {
		if a == "--" {
			out = append(out, args[i:]...)
			break
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(a, "-"), "=")
		if strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && len(name) > 1 && long[name] {
			a = "-" + a
		}
		out = append(out, a)
	}
	root.SetArgs(out)
}
