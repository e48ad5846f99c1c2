// Package flagstyle lets long flags be written with one hyphen too (-dev, -config), as Go's own tools, Nomad and Poseidon write them; cobra alone
// takes -dev for three flags of one letter.
package flagstyle

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Verbatim is the annotation of a command whose arguments from the second on belong to another program: they stay as they are.
const Verbatim = "verbatim"

// Accept makes root take its long flags with one hyphen or two. Everything after -- stays as it is.
func Accept(root *cobra.Command, args []string) {
	out := make([]string, 0, len(args))
	at, value := root, false // the command so far; whether the next word is a flag's value
	for i, a := range args {
		switch {
		case value:
			value = false
		case a == "--":
			root.SetArgs(append(out, args[i:]...))
			return
		case strings.HasPrefix(a, "-") && len(a) > 1:
			a, value = flag(at, a)
		case at.Annotations[Verbatim] != "":
			root.SetArgs(append(out, args[i:]...))
			return
		default:
			if j := slices.IndexFunc(at.Commands(), func(c *cobra.Command) bool { return c.Name() == a }); j >= 0 {
				at = at.Commands()[j]
			}
		}
		out = append(out, a)
	}
	root.SetArgs(out)
}

// flag is a word that begins with a hyphen as pflag wants it, and whether its value is the next word.
func flag(c *cobra.Command, word string) (string, bool) {
	name, _, given := strings.Cut(strings.TrimLeft(word, "-"), "=")
	f := c.Flags().Lookup(name)
	if f == nil {
		f = c.InheritedFlags().Lookup(name)
	}
	if f == nil && len(name) == 1 {
		f = c.Flags().ShorthandLookup(name)
	}
	if len(name) > 1 && !strings.HasPrefix(word, "--") && (f != nil || name == "help" || name == "version") {
		word = "-" + word
	}
	return word, f != nil && !given && takesValue(f)
}

func takesValue(f *pflag.Flag) bool { return f.NoOptDefVal == "" }
