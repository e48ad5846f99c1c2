// Command gateway serves the API for running strangers' code, and runs programs through it from a terminal.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"rockpool/cmd/flagstyle"
	"rockpool/internal/client"
	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
)

// errConfig marks what is to be put right in the configuration.
var errConfig = errors.New("configuration")

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	code := 0
	var file string
	serveRun := func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), file) }
	root := &cobra.Command{Use: "gateway", Short: "A gateway for running strangers' code", SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs, RunE: serveRun}
	serveCmd := &cobra.Command{Use: "serve", Short: "Serve the API", Args: cobra.NoArgs, RunE: serveRun}
	checkCmd := &cobra.Command{Use: "check", Short: "Check the configuration, and refuse what serve would ignore", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return check(file) }}
	for _, c := range []*cobra.Command{root, serveCmd, checkCmd} {
		c.Flags().StringVar(&file, "config", "./configuration.yaml", "configuration file")
	}
	versionCmd := &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), gateway.Version()) }}
	root.AddCommand(append(manageCommands(), serveCmd, checkCmd, runCommand(&code), versionCmd)...)
	flagstyle.Accept(root, args)
	cmd, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return code
	}
	fmt.Fprintln(os.Stderr, "gateway:", err)
	switch {
	case errors.Is(err, errConfig):
		return 2
	case cmd.Name() == "run":
		return client.ExitError // not to be taken for the program's own
	}
	return 1
}

// check reads the configuration as serve does, and takes what that ignores for mistakes.
func check(file string) error {
	_, notes, err := config.Load(file, os.Environ())
	problems := []error{err}
	if notes.Missing {
		problems = append(problems, fmt.Errorf("%s: there is no such file", file))
	}
	for _, doubt := range notes.Doubts {
		problems = append(problems, errors.New(doubt))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("%w:\n%w", errConfig, err)
	}
	return nil
}

func serve(ctx context.Context, file string) error {
	cfg, notes, err := config.Load(file, os.Environ())
	if err != nil {
		return fmt.Errorf("%w:\n%w", errConfig, err)
	}
	log, err := logging.New(os.Stderr, cfg.Logger.Level, cfg.Logger.Formatter)
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	if notes.Missing {
		log.WithField("file", file).Info("there is no configuration file, defaults are used")
	}
	if len(notes.Ignored) > 0 {
		log.WithField("keys", notes.Ignored).Info("keys without a meaning here are ignored")
	}
	for _, doubt := range notes.Doubts {
		log.WithField("doubt", doubt).Warn("a part of the configuration is ignored")
	}
	var embedded gateway.Embedded
	if cfg.Nomad.Address == "" {
		if embedded, err = gateway.NewEmbedded(cfg.Orchestrator, cfg.Tracing, cfg.Nomad.Namespace, log); err != nil {
			return err
		}
	}
	g, err := gateway.New(cfg, embedded, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGABRT)
	defer stop()
	return g.Run(ctx)
}

func runCommand(code *int) *cobra.Command {
	var o client.Options
	c := &cobra.Command{Use: "run [flags] -- command [argument]...", Short: "Run a program in a runner"}
	c.Args = func(_ *cobra.Command, argv []string) error {
		if len(argv) == 0 {
			return errors.New("say what to run, such as gateway run --env 10 -- python3 main.py")
		}
		return nil
	}
	f := c.Flags()
	whichGateway(c, &o.URL, &o.Token)
	f.IntVar(&o.Environment, "env", 0, "execution environment")
	f.StringArrayVar(&o.Files, "file", nil, "file to upload; may be repeated")
	f.StringVar(&o.Dir, "dir", "", "directory whose content is uploaded")
	f.IntVar(&o.TimeLimit, "time-limit", 0, "seconds; 0 = a day")
	f.IntVar(&o.Wait, "wait", 60, "seconds to wait for a runner when none is idle; the gateway's pools.maxwait bounds it")
	_ = c.MarkFlagRequired("env")
	f.SetInterspersed(false)
	c.RunE = func(cmd *cobra.Command, argv []string) (err error) {
		o.Argv = argv
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, os.Interrupt, syscall.SIGWINCH)
		defer signal.Stop(signals)
		// A reader of the output that leaves must not end this process before it has given the runner back.
		signal.Ignore(syscall.SIGPIPE)
		*code, err = client.Run(ctx, o, client.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Signals: signals})
		return err
	}
	return c
}
