package cli

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

var serverCommands = []Command{
	{Path: "server members", Remote: true, Setup: serverMembers, Short: "Show the servers that know each other"},
	{Path: "operator raft list-peers", Remote: true, Setup: raftList, Short: "Show the servers that vote"},
	{Path: "operator raft remove-peer", Remote: true, Setup: raftPeer((*api.Operator).RaftRemovePeerByID, (*api.Operator).RaftRemovePeerByAddress, "Server %s is removed"),
		Short: "Take a server out that is gone for good"},
	{Path: "operator raft transfer-leadership", Remote: true, Setup: raftPeer((*api.Operator).RaftTransferLeadershipByID, (*api.Operator).RaftTransferLeadershipByAddress, "Leadership goes to %s"),
		Short: "Hand leadership to another server"},
	{Path: "operator snapshot save", Args: "[<file>]", Max: 1, Remote: true, Setup: snapshotSave, Short: "Save the whole state to a file"},
	{Path: "operator snapshot restore", Args: "<file>", Min: 1, Max: 1, Remote: true, Setup: snapshotRestore, Short: "Replace the whole state by that of a file"},
	{Path: "operator autopilot get-config", Remote: true, Setup: autopilotConfig, Short: "Show how dead servers are dealt with"},
	{Path: "operator autopilot health", Remote: true, Setup: autopilotHealth, Short: "Show the health of the servers",
		Long: "Show the health of the servers.\nExit codes: 0 all are healthy, 2 one is not, 1 an error."},
	{Path: "operator gossip keyring generate", Setup: gossipKey, Short: "Make a key for server.encrypt"},
	{Path: "operator gossip keyring list", Remote: true, Setup: gossipKeys, Short: "Show the keys that the servers know"},
	{Path: "operator gossip keyring install", Setup: gossipChange((*api.Agent).InstallKey, "All servers know the key"), Args: "<key>", Min: 1, Max: 1, Remote: true, Short: "Have all servers know a key"},
	{Path: "operator gossip keyring use", Setup: gossipChange((*api.Agent).UseKey, "All servers encrypt with the key"), Args: "<key>", Min: 1, Max: 1, Remote: true, Short: "Have all servers encrypt with a key that they know"},
	{Path: "operator gossip keyring remove", Setup: gossipChange((*api.Agent).RemoveKey, "No server knows the key any more"), Args: "<key>", Min: 1, Max: 1, Remote: true, Short: "Have all servers forget a key"},
}

func serverMembers(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	verbose := f.Bool("verbose", false, "all tags")
	return func(ctx context.Context, c *Call) error {
		m, err := c.api.Agent().MembersOpts(c.query(ctx))
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, m))
		}
		leader, err := c.api.Status().Leader()
		if err != nil {
			fmt.Fprintf(c.Err, "Warning: the leader is not known: %v\n", c.explain(err))
		}
		rows := [][]string{{"Name", "Address", "Port", "Status", "Leader", "Raft Version", "Build", "Datacenter", "Region"}}
		slices.SortFunc(m.Members, func(a, b *api.AgentMember) int { return strings.Compare(a.Name, b.Name) })
		for _, s := range m.Members {
			rpc := or(s.Tags["rpc_addr"], s.Addr) + ":" + s.Tags["port"]
			rows = append(rows, []string{s.Name, s.Addr, itoa(s.Port), s.Status, fmt.Sprint(leader != "" && leader == rpc), s.Tags["raft_vsn"], s.Tags["build"], s.Tags["dc"], s.Tags["region"]})
		}
		table(c.Out, rows)
		if *verbose {
			for _, s := range m.Members {
				fmt.Fprintf(c.Out, "%s: %v\n", s.Name, s.Tags)
			}
		}
		return nil
	}
}

func raftList(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	stale := f.Bool("stale", false, "ask any server, also where there is no leader")
	return func(ctx context.Context, c *Call) error {
		q := c.query(ctx)
		q.AllowStale = *stale
		conf, err := c.api.Operator().RaftGetConfiguration(q)
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, conf))
		}
		rows := [][]string{{"Node", "ID", "Address", "State", "Voter", "RaftProtocol"}}
		for _, s := range conf.Servers {
			state := "follower"
			if s.Leader {
				state = "leader"
			}
			rows = append(rows, []string{s.Node, s.ID, s.Address, state, fmt.Sprint(s.Voter), s.RaftProtocol})
		}
		table(c.Out, rows)
		return nil
	}
}

// peer are the flags that name a server.
type peer struct{ id, address string }

func (p *peer) flags(f *pflag.FlagSet) {
	f.StringVar(&p.id, "peer-id", "", "the server's id, as list-peers shows it")
	f.StringVar(&p.address, "peer-address", "", "the server's address, as list-peers shows it")
}

func (p *peer) check() error {
	if (p.id == "") == (p.address == "") {
		return errors.New("name the server with either -peer-id or -peer-address")
	}
	return nil
}

// raftPeer does something with a server that is named by its id or its address. done tells of it, with the name.
func raftPeer(byID, byAddress func(*api.Operator, string, *api.WriteOptions) error, done string) func(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(f *pflag.FlagSet) func(context.Context, *Call) error {
		var p peer
		p.flags(f)
		return func(ctx context.Context, c *Call) error {
			if err := p.check(); err != nil {
				return err
			}
			do, name := byID, p.id
			if p.id == "" {
				do, name = byAddress, p.address
			}
			if err := do(c.api.Operator(), name, c.write(ctx)); err != nil {
				return err
			}
			fmt.Fprintf(c.Out, done+"\n", name)
			return nil
		}
	}
}

func snapshotSave(f *pflag.FlagSet) func(context.Context, *Call) error {
	stale := f.Bool("stale", false, "ask any server, also where there is no leader")
	return func(ctx context.Context, c *Call) (err error) {
		name := "rockpool-" + time.Now().UTC().Format("20060102-150405") + ".snap"
		if len(c.Args) > 0 {
			name = c.Args[0]
		}
		q := c.query(ctx)
		q.AllowStale = *stale
		in, err := c.api.Operator().Snapshot(q)
		if err != nil {
			return err
		}
		defer in.Close()
		n, err := saveFile(name, in)
		if err != nil {
			return fmt.Errorf("save the snapshot: %w", err)
		}
		fmt.Fprintf(c.Out, "State saved to %s, %d bytes. It holds secrets: keep it as such.\n", name, n)
		return nil
	}
}

// saveFile writes a file whole or not at all, for its owner only. The reader's last error also says whether its checksum was right.
func saveFile(name string, in io.Reader) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err = io.Copy(f, in)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return n, os.Rename(f.Name(), name)
}

func snapshotRestore(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(ctx context.Context, c *Call) error {
		in, err := os.Open(c.Args[0])
		if err != nil {
			return err
		}
		defer in.Close()
		if _, err := c.api.Operator().SnapshotRestore(in, c.write(ctx)); err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "The state is that of %s\n", c.Args[0])
		return nil
	}
}

func autopilotConfig(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	return func(ctx context.Context, c *Call) error {
		conf, _, err := c.api.Operator().AutopilotGetConfiguration(c.query(ctx))
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, conf))
		}
		pairs(c.Out, "CleanupDeadServers", fmt.Sprint(conf.CleanupDeadServers), "LastContactThreshold", conf.LastContactThreshold.String(),
			"MaxTrailingLogs", itoa(conf.MaxTrailingLogs), "MinQuorum", fmt.Sprint(conf.MinQuorum), "ServerStabilizationTime", conf.ServerStabilizationTime.String())
		return nil
	}
}

func autopilotHealth(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	return func(ctx context.Context, c *Call) error {
		h, _, err := c.api.Operator().AutopilotServerHealth(c.query(ctx))
		if r, ok := errors.AsType[api.UnexpectedResponseError](err); ok && r.StatusCode() == http.StatusTooManyRequests { // that is how it says that one is not well
			err = json.Unmarshal([]byte(r.Body()), &h)
		}
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(c.Out, h)
		} else {
			pairs(c.Out, "Healthy", fmt.Sprint(h.Healthy), "FailureTolerance", itoa(h.FailureTolerance), "Leader", h.Leader)
			rows := [][]string{{"ID", "Name", "Address", "SerfStatus", "Version", "Leader", "Voter", "Healthy", "LastContact", "LastTerm", "LastIndex", "StableSince"}}
			for _, s := range h.Servers {
				rows = append(rows, []string{s.ID, s.Name, s.Address, s.SerfStatus, s.Version, fmt.Sprint(s.Leader), fmt.Sprint(s.Voter), fmt.Sprint(s.Healthy),
					s.LastContact.String(), itoa(s.LastTerm), itoa(s.LastIndex), s.StableSince.UTC().Format(time.RFC3339)})
			}
			table(c.Out, rows)
		}
		if err == nil && !h.Healthy {
			return failed(2, "")
		}
		return err
	}
}

func gossipKey(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(_ context.Context, c *Call) error {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails, by its documentation
		fmt.Fprintln(c.Out, base64.StdEncoding.EncodeToString(key))
		return nil
	}
}

func gossipKeys(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(_ context.Context, c *Call) error {
		keys, err := c.api.Agent().ListKeys()
		if err != nil {
			return err
		}
		rows := [][]string{{"Key", "Servers"}}
		for _, k := range slices.Sorted(maps.Keys(keys.Keys)) {
			rows = append(rows, []string{k, fmt.Sprintf("%d of %d", keys.Keys[k], keys.NumNodes)})
		}
		table(c.Out, rows)
		return nil
	}
}

func gossipChange(change func(*api.Agent, string) (*api.KeyringResponse, error), done string) func(*pflag.FlagSet) func(context.Context, *Call) error {
	return func(*pflag.FlagSet) func(context.Context, *Call) error {
		return func(_ context.Context, c *Call) error {
			if _, err := change(c.api.Agent(), c.Args[0]); err != nil {
				return err
			}
			fmt.Fprintln(c.Out, done)
			return nil
		}
	}
}
