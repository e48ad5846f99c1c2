package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"rockpool/internal/api/access"
	"rockpool/internal/client"
)

// manageCommands are those for people who operate a gateway by its API.
func manageCommands() []*cobra.Command {
	return []*cobra.Command{envCommand(), poolCommand(), runnersCommand(), timelineCommand(), tokenCommand()}
}

// target adds the flags that say which gateway is meant.
func target(c *cobra.Command, printsJSON bool) *client.Target {
	t := &client.Target{}
	whichGateway(c, &t.URL, &t.Token)
	if printsJSON {
		c.Flags().BoolVar(&t.JSON, "json", false, "print the gateway's answer as it is")
	}
	return t
}

func whichGateway(c *cobra.Command, url, token *string) {
	c.Flags().StringVar(url, "url", cmp.Or(os.Getenv("ROCKPOOL_URL"), "http://127.0.0.1:7200"), "the gateway (default from ROCKPOOL_URL)")
	c.Flags().StringVar(token, "token", os.Getenv("ROCKPOOL_TOKEN"), "its token (default from ROCKPOOL_TOKEN)")
	c.Flags().Lookup("token").DefValue = "" // a secret has no place in the help
}

func envCommand() *cobra.Command {
	env := &cobra.Command{Use: "env", Short: "List, define and delete execution environments", Args: cobra.NoArgs}
	list := &cobra.Command{Use: "list", Short: "List the environments", Args: cobra.NoArgs}
	lt := target(list, true)
	list.RunE = func(c *cobra.Command, _ []string) error {
		return client.ListEnvironments(c.Context(), *lt, c.OutOrStdout())
	}
	remove := &cobra.Command{Use: "delete ID...", Short: "Delete environments with all their runners, used ones too", Args: cobra.MinimumNArgs(1)}
	rt := target(remove, false)
	remove.RunE = func(c *cobra.Command, args []string) error {
		var ids []int
		for _, a := range args {
			id, err := environmentID(a)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return client.DeleteEnvironments(c.Context(), *rt, ids, c.OutOrStdout())
	}
	env.AddCommand(list, applyCommand(), remove)
	return env
}

func environmentID(s string) (int, error) {
	id, err := strconv.Atoi(s)
	if err != nil || id < 0 {
		return 0, fmt.Errorf("%q is not the id of an environment, which is a whole number", s)
	}
	return id, nil
}

func applyCommand() *cobra.Command {
	apply := &cobra.Command{
		Use: "apply [ID]", Short: "Create or change environments from a file or from flags, and say what changes", Args: cobra.MaximumNArgs(1),
		Long: "Create or change environments, from a file (--file, - is standard input) or one from flags, and say what changes.\n" +
			"What is not given stays as it is. A new environment needs an image.",
		Example: "  gateway env apply 10 --image host --pool 5\n  gateway env list --json > envs.json; gateway env apply --file envs.json --dry-run",
	}
	t := target(apply, false)
	f := apply.Flags()
	file := f.StringP("file", "f", "", "YAML or JSON of one or more environments")
	dry := f.Bool("dry-run", false, "say what would change, and change nothing")
	image, runtime := f.String("image", "", "image, such as host or debian:12"), f.String("runtime", "", "isolation class: an OCI runtime of the nodes")
	pool, cpu, memory := f.Uint("pool", 0, "prewarmed runners"), f.Uint("cpu", 0, "MHz"), f.Uint("memory", 0, "MB")
	network, ports := f.Bool("network", false, "network access"), f.UintSlice("port", nil, "exposed port; may be repeated")
	egress := f.StringSlice("egress", nil, "what may be reached with network access; may be repeated")
	devices := f.StringArray("device", nil, "device of each runner, such as nvidia/gpu or nvidia/gpu=2; may be repeated; none = no devices. Conditions go by --file")
	apply.RunE = func(c *cobra.Command, args []string) error {
		if (*file == "") == (len(args) == 0) {
			return fmt.Errorf("say either which environment, by its id, or which file")
		}
		if *file != "" {
			data, err := readInput(*file)
			if err != nil {
				return fmt.Errorf("--file: %w", err)
			}
			definitions, err := client.ReadDefinitions(data)
			if err != nil {
				return fmt.Errorf("--file: %s: %w", *file, err)
			}
			return client.ApplyEnvironments(c.Context(), *t, definitions, *dry, c.OutOrStdout())
		}
		id, err := environmentID(args[0])
		if err != nil {
			return err
		}
		for _, p := range *ports {
			if p == 0 || p > 65535 {
				return fmt.Errorf("--port: %d is not between 1 and 65535", p)
			}
		}
		d := client.Definition{ID: id, Fields: map[string]any{}}
		if f.Changed("device") {
			if d.Fields["devices"], err = client.ParseDevices(*devices); err != nil {
				return fmt.Errorf("--device: %w", err)
			}
		}
		for flag, field := range map[string]struct {
			name  string
			value any
		}{
			"image": {"image", *image}, "runtime": {"runtime", *runtime}, "pool": {"prewarmingPoolSize", *pool}, "cpu": {"cpuLimit", *cpu},
			"memory": {"memoryLimit", *memory}, "network": {"networkAccess", *network}, "port": {"exposedPorts", *ports}, "egress": {"networkEgress", *egress},
		} {
			if f.Changed(flag) {
				d.Fields[field.name] = field.value
			}
		}
		return client.ApplyEnvironments(c.Context(), *t, []client.Definition{d}, *dry, c.OutOrStdout())
	}
	return apply
}

func readInput(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(file)
}

func poolCommand() *cobra.Command {
	c := &cobra.Command{Use: "pool [ID]", Short: "Show the pools, or one with its runners", Args: cobra.MaximumNArgs(1)}
	t := target(c, true)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return client.ShowPools(c.Context(), *t, nil, c.OutOrStdout())
		}
		id, err := environmentID(args[0])
		if err != nil {
			return err
		}
		return client.ShowPools(c.Context(), *t, &id, c.OutOrStdout())
	}
	return c
}

func runnersCommand() *cobra.Command {
	runners := &cobra.Command{Use: "runners", Short: "List, claim and give back runners", Args: cobra.NoArgs}
	list := &cobra.Command{Use: "list", Short: "List the claimed runners that the token may use", Args: cobra.NoArgs}
	lt := target(list, true)
	list.RunE = func(c *cobra.Command, _ []string) error { return client.ListRunners(c.Context(), *lt, c.OutOrStdout()) }
	claim := &cobra.Command{Use: "claim ENVIRONMENT", Short: "Claim a runner and print its id", Args: cobra.ExactArgs(1)}
	ct := target(claim, true)
	timeout := claim.Flags().Uint("timeout", 300, "seconds without use after which it goes; 0 = never")
	claim.RunE = func(c *cobra.Command, args []string) error {
		id, err := environmentID(args[0])
		if err != nil {
			return err
		}
		return client.ClaimRunner(c.Context(), *ct, id, int(*timeout), c.OutOrStdout())
	}
	release := &cobra.Command{Use: "release RUNNER...", Short: "Give runners back: they are destroyed with their files", Args: cobra.MinimumNArgs(1)}
	rt := target(release, false)
	release.RunE = func(c *cobra.Command, args []string) error {
		return client.ReleaseRunners(c.Context(), *rt, args, c.OutOrStdout())
	}
	runners.AddCommand(list, claim, release)
	return runners
}

func tokenCommand() *cobra.Command {
	return &cobra.Command{
		Use: "token NAME", Short: "Make a secret, and its entry for server.tokenfile", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			secret, entry, err := access.Generate(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "The secret, which is shown this once:\n%s\nThe entry below tokens in server.tokenfile:\n", secret)
			_, err = fmt.Fprint(c.OutOrStdout(), entry)
			return err
		},
	}
}
