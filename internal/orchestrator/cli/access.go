package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

var accessCommands = []Command{
	{Path: "acl bootstrap", Args: "[<file with a secret>]", Max: 1, Remote: true, Setup: aclBootstrap, Short: "Get the first token, once per cluster",
		Long: "Get the first token, which may do everything. It works once per cluster.\nA file names the secret that the token shall have: a UUID; - is the standard input."},
	{Path: "namespace list", Remote: true, Setup: namespaceList, Short: "Show namespaces"},
	{Path: "namespace apply", Args: "<name>", Min: 1, Max: 1, Remote: true, Setup: namespaceApply, Short: "Make or change a namespace"},
	{Path: "namespace delete", Args: "<name>", Min: 1, Max: 1, Remote: true, Setup: namespaceDelete, Short: "Remove a namespace that has no live jobs"},
}

func aclBootstrap(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	return func(ctx context.Context, c *Call) error {
		secret := ""
		if len(c.Args) > 0 {
			data, err := c.input(c.Args[0], 4096)
			if err != nil {
				return fmt.Errorf("read the secret: %w", err)
			}
			if secret = strings.TrimSpace(string(data)); secret == "" {
				return fmt.Errorf("%s holds no secret", c.Args[0])
			}
		}
		t, _, err := c.api.ACLTokens().BootstrapOpts(secret, c.write(ctx))
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, t))
		}
		pairs(c.Out, "Accessor ID", t.AccessorID, "Secret ID", t.SecretID, "Name", t.Name, "Type", t.Type, "Create Time", t.CreateTime.UTC().Format(time.RFC3339))
		fmt.Fprintln(c.Out, "\nThe secret is shown this once. Use it with -token or NOMAD_TOKEN.")
		return nil
	}
}

func namespaceList(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	return func(ctx context.Context, c *Call) error {
		list, _, err := c.api.Namespaces().List(c.query(ctx))
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, list))
		}
		rows := [][]string{{"Name", "Quota", "Description"}}
		for _, n := range list {
			rows = append(rows, []string{n.Name, or(n.Quota, "<none>"), or(n.Description, "<none>")})
		}
		table(c.Out, rows)
		return nil
	}
}

func namespaceApply(f *pflag.FlagSet) func(context.Context, *Call) error {
	description := f.String("description", "", "what it is for")
	quota := f.String("quota", "", "of its jobs together; empty = none")
	return func(ctx context.Context, c *Call) error {
		n := &api.Namespace{Name: c.Args[0]}
		old, _, err := c.api.Namespaces().Info(n.Name, c.query(ctx))
		if r, ok := errors.AsType[api.UnexpectedResponseError](err); ok && r.StatusCode() == 404 {
			err = nil
		}
		if err != nil {
			return err
		}
		if old != nil { // what no flag names stays
			n = old
		}
		if f.Changed("description") {
			n.Description = *description
		}
		if f.Changed("quota") {
			n.Quota = *quota
		}
		if _, err := c.api.Namespaces().Register(n, c.write(ctx)); err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "Namespace %q is applied\n", n.Name)
		return nil
	}
}

func namespaceDelete(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(ctx context.Context, c *Call) error {
		if _, err := c.api.Namespaces().Delete(c.Args[0], c.write(ctx)); err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "Namespace %q is removed\n", c.Args[0])
		return nil
	}
}
