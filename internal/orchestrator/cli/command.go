package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

// Env is what a command runs in.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	// Poll is how often a command that follows something asks for it. 0 = 1 s.
	Poll time.Duration
}

// Command is one row.
type Command struct {
	Path    string // such as "job run"
	Args    string // as usage shows them
	Short   string
	Long    string // empty = Short
	Min     int    // of arguments
	Max     int    // -1 = any number
	Remote  bool   // it speaks to an agent, and has the flags for that
	Program bool   // what follows the first argument is another program's and is left as it is
	// Setup declares the command's flags and returns what runs.
	Setup func(f *pflag.FlagSet) func(ctx context.Context, c *Call) error
}

// Call is one run of a command.
type Call struct {
	Env
	Args []string
	api  *api.Client
	conf *api.Config
}

// exit is an error with an exit code of its own.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// failed ends a command with an exit code. An empty text says nothing more.
func failed(code int, format string, args ...any) error {
	if format == "" {
		return &exit{code, nil}
	}
	return &exit{code, fmt.Errorf(format, args...)}
}

// Code is the exit code that an outcome stands for: 0 for nil, 1 for an error that has none of its own.
func Code(err error) int {
	if e, ok := errors.AsType[*exit](err); ok {
		return e.code
	}
	if err != nil {
		return 1
	}
	return 0
}

// connection are the flags of everything that speaks to an agent. Each has its environment variable, which the flag wins over.
type connection struct {
	address, region, namespace, token string
	tls                               api.TLSConfig
}

func (c *connection) flags(f *pflag.FlagSet) {
	f.StringVar(&c.address, "address", "", "of the agent's HTTP API (NOMAD_ADDR; default http://127.0.0.1:4646)")
	f.StringVar(&c.region, "region", "", "(NOMAD_REGION)")
	f.StringVar(&c.namespace, "namespace", "", "(NOMAD_NAMESPACE)")
	f.StringVar(&c.token, "token", "", "secret of an ACL token (NOMAD_TOKEN)")
	f.StringVar(&c.tls.CACert, "ca-cert", "", "file with the authority's certificate (NOMAD_CACERT)")
	f.StringVar(&c.tls.CAPath, "ca-path", "", "directory of authorities' certificates (NOMAD_CAPATH)")
	f.StringVar(&c.tls.ClientCert, "client-cert", "", "file with a certificate to show (NOMAD_CLIENT_CERT)")
	f.StringVar(&c.tls.ClientKey, "client-key", "", "file with its key (NOMAD_CLIENT_KEY)")
	f.StringVar(&c.tls.TLSServerName, "tls-server-name", "", "name to expect in the agent's certificate (NOMAD_TLS_SERVER_NAME)")
	f.BoolVar(&c.tls.Insecure, "tls-skip-verify", false, "believe any certificate (NOMAD_SKIP_VERIFY)")
}

func set(into *string, v string) {
	if v != "" {
		*into = v
	}
}

// config is what the environment says, with the flags on top.
func (c *connection) config() *api.Config {
	conf := api.DefaultConfig()
	set(&conf.Address, c.address)
	set(&conf.Region, c.region)
	set(&conf.Namespace, c.namespace)
	set(&conf.SecretID, c.token)
	set(&conf.TLSConfig.CACert, c.tls.CACert)
	set(&conf.TLSConfig.CAPath, c.tls.CAPath)
	set(&conf.TLSConfig.ClientCert, c.tls.ClientCert)
	set(&conf.TLSConfig.ClientKey, c.tls.ClientKey)
	set(&conf.TLSConfig.TLSServerName, c.tls.TLSServerName)
	conf.TLSConfig.Insecure = conf.TLSConfig.Insecure || c.tls.Insecure
	return conf
}

// Prepare declares a command's flags and returns what runs it. Errors come out in words for people.
func (cmd Command) Prepare(f *pflag.FlagSet) func(ctx context.Context, e Env, args []string) error {
	var conn connection
	if cmd.Remote {
		conn.flags(f)
	}
	run := cmd.Setup(f)
	f.SetInterspersed(!cmd.Program)
	return func(ctx context.Context, e Env, args []string) error {
		if len(args) < cmd.Min || cmd.Max >= 0 && len(args) > cmd.Max {
			return fmt.Errorf("usage: orchestrator %s [options] %s", cmd.Path, cmd.Args)
		}
		if e.Poll == 0 {
			e.Poll = time.Second
		}
		c := &Call{Env: e, Args: args, conf: conn.config()}
		if cmd.Remote {
			var err error
			if c.api, err = api.NewClient(c.conf); err != nil {
				return fmt.Errorf("connect to the agent: %w", err)
			}
		}
		return c.explain(run(ctx, c))
	}
}

// Parse runs a command with its flags and arguments, as a program without a tree of commands would.
func (cmd Command) Parse(ctx context.Context, e Env, args ...string) error {
	f := pflag.NewFlagSet(cmd.Path, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	run := cmd.Prepare(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	return run(ctx, e, f.Args())
}

// explain says what to do about an error.
func (c *Call) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, own := errors.AsType[*exit](err); own {
		return err
	}
	if r, ok := errors.AsType[api.UnexpectedResponseError](err); ok {
		text := strings.TrimSpace(r.Body())
		switch r.StatusCode() {
		case 403:
			return fmt.Errorf("%s: name a token that may do this with -token or NOMAD_TOKEN", text)
		case 429:
			return fmt.Errorf("the servers are busy: try again in a moment (%s)", text)
		case 501:
			return fmt.Errorf("%s: the agent at %s does not offer it", text, c.conf.Address)
		case 404:
			if text == "" {
				return fmt.Errorf("the agent at %s does not know this request: is it of an older release?", c.conf.Address)
			}
			return errors.New(text)
		}
		if text != "" {
			return errors.New(text)
		}
		return err
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("no agent answers at %s: name one with -address or NOMAD_ADDR (%w)", c.conf.Address, err)
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return fmt.Errorf("the agent at %s speaks HTTP: use an address that begins with http://", c.conf.Address)
	}
	if errors.Is(err, context.Canceled) {
		return failed(130, "interrupted")
	}
	return err
}

// pick is the one item whose id begins with prefix. An exact match wins.
func pick[T any](what, prefix string, list []T, id func(T) string) (T, error) {
	var none T
	var found []T
	for _, v := range list {
		if id(v) == prefix {
			return v, nil
		}
		if strings.HasPrefix(id(v), prefix) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return none, fmt.Errorf("there is no %s whose id begins with %q", what, prefix)
	}
	ids := make([]string, 0, len(found))
	for _, v := range found {
		ids = append(ids, id(v))
	}
	slices.Sort(ids)
	if len(ids) > 10 {
		ids = append(ids[:10:10], fmt.Sprintf("and %d more", len(found)-10))
	}
	return none, fmt.Errorf("%q stands for several: write more of it: %s", prefix, strings.Join(ids, ", "))
}

// sleep waits for a turn of polling.
func (c *Call) sleep(ctx context.Context) error {
	t := time.NewTimer(c.Poll)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Call) query(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{}).WithContext(ctx)
}

func (c *Call) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{}).WithContext(ctx)
}

// input reads a file, or the standard input for "-".
func (c *Call) input(path string, limit int64) ([]byte, error) {
	in := c.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}
