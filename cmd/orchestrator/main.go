// Command orchestrator runs a cluster's server and node. Flags and exit code live here, everything else below internal/orchestrator.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"rockpool/cmd/flagstyle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/httpapi"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := root()
	flagstyle.Accept(cmd, os.Args[1:])
	if err := cmd.ExecuteContext(ctx); err != nil {
		if err.Error() != "" {
			fmt.Fprintln(os.Stderr, "orchestrator:", err)
		}
		os.Exit(code(ctx, err))
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use: "orchestrator", Short: "Places jobs and runs them in sandboxes, behind Nomad's HTTP API",
		Version: orchestrator.Version(), SilenceUsage: true, SilenceErrors: true,
	}
	cmd.AddCommand(agent(), &cobra.Command{Use: "version", Short: "Show the release", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintln(cmd.OutOrStdout(), "Rockpool orchestrator", orchestrator.Version())
	}})
	addRemote(cmd)
	return cmd
}

// collectAt is how much the heap of an agent grows, in percent of what lives, before it is collected, unless GOGC says otherwise. Twice Go's own value halves
// what takes about a seventh of the CPU under load.
const collectAt = 200

func agent() *cobra.Command {
	var (
		dev                       bool
		config                    []string
		dir, bind, level, logForm string
		port                      int
		onStop                    string
		unconfined                bool
		images                    orchestrator.ImageConfig
		gigabytes                 int64
		network                   = orchestrator.DefaultNetwork()
		runtimes                  []string
		engine                    string
		engineNetworks            []string
		mock                      bool
	)
	cmd := &cobra.Command{
		Use: "agent", Short: "Run a server, a node, or both in one process", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(config) > 0 {
				return runConfigured(cmd, config)
			}
			log, feed, err := logging.NewFeed(os.Stderr, level, logForm)
			if err != nil {
				return err
			}
			if onStop != "keep" && onStop != "remove" {
				return fmt.Errorf("--on-stop: %q is neither keep nor remove", onStop)
			}
			if dev {
				if dir, err = os.MkdirTemp("", "rockpool-dev-"); err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				onStop = "remove"
			}
			if dir == "" {
				return fmt.Errorf("say where the state shall be with --data-dir, name a configuration with --config, or use --dev for a throw-away agent")
			}
			images.MaxBytes = gigabytes << 30
			a, err := orchestrator.NewAgent(orchestrator.AgentConfig{
				DataDir: dir, Address: net.JoinHostPort(bind, strconv.Itoa(port)), Token: os.Getenv(tokenVariable),
				RemoveOnStop: onStop == "remove", AllowUnconfined: unconfined, Log: log,
				Process: httpapi.Process{Log: feed, Profiles: dev},
				Images:  images, Network: network, Runtimes: runtimes, DockerEngine: engine, DockerNetworks: engineNetworks,
				MockDriver: mock,
			})
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(collectAt)
			}
			return a.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&config, "config", nil, "a configuration file, or a directory of them; may be given again, later ones win")
	f.BoolVar(&dev, "dev", false, "a throw-away agent: state in a temporary directory, everything ends with it")
	f.StringVar(&dir, "data-dir", "", "directory of the state")
	f.StringVar(&bind, "bind", "127.0.0.1", "address of the HTTP API")
	f.IntVar(&port, "port", 4646, "port of the HTTP API; 0 = any free one")
	f.StringVar(&onStop, "on-stop", "keep", "keep: allocations outlive the agent and are taken back; remove: they end with it")
	f.BoolVar(&unconfined, "allow-unconfined", false, "run although no control group controller is usable")
	f.StringSliceVar(&images.LocalDirs, "image-local-dir", nil, "directory that images on this machine may be taken from, besides images/local below the state")
	f.StringSliceVar(&images.Mirrors, "image-mirror", nil, "registry=mirror: another place to pull a registry's images from")
	f.StringSliceVar(&images.PlainHTTP, "image-plain-http", nil, "a registry that is asked over HTTP without TLS")
	f.StringVar(&images.Credentials, "image-credentials", "", "a Docker config file with credentials (default: the user's)")
	f.Int64Var(&gigabytes, "image-max-size", 20, "GB that unpacked images may take; 0 = no bound")
	f.DurationVar(&images.MaxAge, "image-max-age", 168*time.Hour, "after which an image that nothing uses goes; 0 = never")
	f.StringVar(&network.Range, "network-range", network.Range, "IPv4 range of runners with network access; empty = none have")
	f.StringSliceVar(&network.DNS, "network-dns", nil, "name servers that runners' questions are passed on to (default: the machine's)")
	f.StringVar(&network.CNIConfigs, "cni-config-dir", network.CNIConfigs, "directory of CNI configurations")
	f.StringVar(&network.CNIPlugins, "cni-path", network.CNIPlugins, "directory of CNI plugins")
	f.StringSliceVar(&runtimes, "runtime", nil, "name=path: an OCI runtime that jobs may ask for")
	f.StringVar(&engine, "docker-engine", "", "run jobs for Docker in this engine instead, such as unix:///var/run/docker.sock")
	f.StringSliceVar(&engineNetworks, "docker-network", nil, "a network of that engine that jobs may have: it has to keep programs from this machine and private addresses itself")
	f.BoolVar(&mock, "enable-mock", false, "offer the driver mock, whose tasks are entries in memory: for measurements")
	f.StringVar(&level, "log-level", "info", "error, warn, info, debug or trace")
	f.StringVar(&logForm, "log-format", logging.Text, logging.Text+" or "+logging.JSON)
	return cmd
}
