package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/spf13/pflag"
)

var nodeCommands = []Command{
	{Path: "node status", Args: "[<node>]", Max: 1, Remote: true, Setup: nodeStatus, Short: "Show nodes, or one of them"},
	{Path: "node drain", Args: "<node>", Max: 1, Remote: true, Setup: nodeDrain, Short: "Empty a node, or stop emptying it"},
	{Path: "node eligibility", Args: "<node>", Max: 1, Remote: true, Setup: nodeEligibility, Short: "Say whether a node may get new allocations"},
}

// node finds a node by the beginning of its id; with self the one of the agent that is asked.
func (c *Call) node(ctx context.Context, self bool) (*api.NodeListStub, error) {
	prefix := ""
	switch {
	case self && len(c.Args) > 0:
		return nil, errors.New("-self and a node's id do not go together")
	case self:
		agent, err := c.api.Agent().Self()
		if err != nil {
			return nil, err
		}
		if prefix = agent.Stats["client"]["node_id"]; prefix == "" {
			return nil, errors.New("the agent that is asked has no node")
		}
	case len(c.Args) == 0:
		return nil, errors.New("name a node by the beginning of its id, or -self")
	default:
		prefix = c.Args[0]
	}
	q := c.query(ctx)
	q.Prefix = prefix
	list, _, err := c.api.Nodes().List(q)
	if err != nil {
		return nil, err
	}
	return pick("node", prefix, list, func(n *api.NodeListStub) string { return n.ID })
}

func nodeStatus(f *pflag.FlagSet) func(context.Context, *Call) error {
	asJSON := f.Bool("json", false, "")
	self := f.Bool("self", false, "of the agent that is asked")
	verbose := f.Bool("verbose", false, "whole ids, attributes")
	filter := f.String("filter", "", "an expression that nodes of the list have to meet")
	return func(ctx context.Context, c *Call) error {
		if len(c.Args) == 0 && !*self {
			q := c.query(ctx)
			q.Filter = *filter
			list, _, err := c.api.Nodes().List(q)
			if err != nil || *asJSON {
				return errors.Join(err, printIf(c, err == nil, list))
			}
			rows := [][]string{{"ID", "Node Pool", "DC", "Name", "Class", "Drain", "Eligibility", "Status"}}
			for _, n := range list {
				rows = append(rows, []string{c.id(n.ID, *verbose), n.NodePool, n.Datacenter, n.Name, or(n.NodeClass, "<none>"), fmt.Sprint(n.Drain), n.SchedulingEligibility, n.Status})
			}
			table(c.Out, rows)
			return nil
		}
		stub, err := c.node(ctx, *self)
		if err != nil {
			return err
		}
		n, _, err := c.api.Nodes().Info(stub.ID, c.query(ctx))
		if err != nil || *asJSON {
			return errors.Join(err, printIf(c, err == nil, n))
		}
		return c.describeNode(ctx, n, *verbose)
	}
}

func (c *Call) describeNode(ctx context.Context, n *api.Node, verbose bool) error {
	var drivers []string
	for _, d := range slices.Sorted(maps.Keys(n.Drivers)) {
		if info := n.Drivers[d]; info.Healthy {
			drivers = append(drivers, d)
		} else if info.Detected {
			drivers = append(drivers, d+" (unhealthy: "+info.HealthDescription+")")
		}
	}
	pairs(c.Out, "ID", n.ID, "Name", n.Name, "Node Pool", n.NodePool, "Class", or(n.NodeClass, "<none>"), "DC", n.Datacenter, "Drain", fmt.Sprint(n.Drain),
		"Eligibility", n.SchedulingEligibility, "Status", n.Status, "Drivers", strings.Join(drivers, ","))
	if r := n.NodeResources; r != nil {
		fmt.Fprintln(c.Out, "\nResources")
		pairs(c.Out, "CPU", itoa(r.Cpu.CpuShares)+" MHz", "Memory", itoa(r.Memory.MemoryMB)+" MB", "Disk", itoa(r.Disk.DiskMB)+" MB")
		for _, d := range r.Devices {
			healthy := 0
			for _, i := range d.Instances {
				if i.Healthy {
					healthy++
				}
			}
			fmt.Fprintf(c.Out, "Device %s/%s/%s: %d instances, %d healthy\n", d.Vendor, d.Type, d.Name, len(d.Instances), healthy)
		}
	}
	if len(n.Events) > 0 {
		fmt.Fprintln(c.Out, "\nEvents")
		rows := [][]string{{"Time", "Subsystem", "Message"}}
		for _, e := range slices.Backward(n.Events) {
			rows = append(rows, []string{e.Timestamp.UTC().Format(time.RFC3339), e.Subsystem, e.Message})
		}
		table(c.Out, rows)
	}
	allocs, _, err := c.api.Nodes().Allocations(n.ID, c.query(ctx))
	if err != nil {
		return err
	}
	fmt.Fprintln(c.Out, "\nAllocations")
	stubs := make([]*api.AllocationListStub, 0, len(allocs))
	for _, a := range allocs {
		stubs = append(stubs, a.Stub())
	}
	c.allocs(stubs, verbose)
	if verbose {
		fmt.Fprintln(c.Out, "\nAttributes")
		var list []string
		for _, k := range slices.Sorted(maps.Keys(n.Attributes)) {
			list = append(list, k, n.Attributes[k])
		}
		for _, k := range slices.Sorted(maps.Keys(n.Meta)) {
			list = append(list, "meta."+k, n.Meta[k])
		}
		pairs(c.Out, list...)
	}
	return nil
}

func nodeDrain(f *pflag.FlagSet) func(context.Context, *Call) error {
	enable := f.Bool("enable", false, "begin")
	disable := f.Bool("disable", false, "end it")
	deadline := f.Duration("deadline", time.Hour, "after which what is left is stopped")
	noDeadline := f.Bool("no-deadline", false, "wait for what is left, however long")
	force := f.Bool("force", false, "stop everything at once")
	system := f.Bool("ignore-system", false, "leave system jobs")
	keep := f.Bool("keep-ineligible", false, "with -disable: the node still gets nothing new")
	detach := f.Bool("detach", false, "do not follow it")
	monitor := f.Bool("monitor", false, "follow a drain that is under way")
	self := f.Bool("self", false, "the node of the agent that is asked")
	message := f.StringP("m", "m", "", "why, kept with the node")
	f.BoolP("yes", "y", false, "accepted: nothing is asked")
	return func(ctx context.Context, c *Call) error {
		switch {
		case !*monitor && *enable == *disable:
			return errors.New("say either -enable or -disable")
		case *force && *noDeadline:
			return errors.New("-force and -no-deadline do not go together")
		case *deadline <= 0:
			return errors.New("-deadline: a duration above 0 is needed; -force stops everything at once")
		}
		n, err := c.node(ctx, *self)
		if err != nil {
			return err
		}
		index := uint64(1)
		if *enable || *disable {
			opts := &api.DrainOptions{MarkEligible: !*keep}
			if *message != "" {
				opts.Meta = map[string]string{"message": *message}
			}
			if *enable {
				opts.MarkEligible = false
				opts.DrainSpec = &api.DrainSpec{Deadline: *deadline, IgnoreSystemJobs: *system}
				if *force {
					opts.DrainSpec.Deadline = -1
				} else if *noDeadline {
					opts.DrainSpec.Deadline = 0
				}
			}
			r, err := c.api.Nodes().UpdateDrainOpts(n.ID, opts, c.write(ctx))
			if err != nil {
				return err
			}
			index = r.LastIndex
			fmt.Fprintf(c.Out, "Node %s: drain %s\n", n.ID, map[bool]string{true: "begins", false: "ends"}[*enable])
		}
		if *disable || *detach {
			return nil
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for m := range c.api.Nodes().MonitorDrain(ctx, n.ID, index, *system) {
			fmt.Fprintln(c.Out, m.String())
			if m.Level == api.MonitorMsgLevelError {
				err = failed(1, "the drain of node %s was not followed to its end", n.ID)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
}

func nodeEligibility(f *pflag.FlagSet) func(context.Context, *Call) error {
	enable := f.Bool("enable", false, "it may")
	disable := f.Bool("disable", false, "it may not")
	self := f.Bool("self", false, "the node of the agent that is asked")
	return func(ctx context.Context, c *Call) error {
		if *enable == *disable {
			return errors.New("say either -enable or -disable")
		}
		n, err := c.node(ctx, *self)
		if err != nil {
			return err
		}
		if _, err := c.api.Nodes().ToggleEligibility(n.ID, *enable, c.write(ctx)); err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "Node %s is %s\n", n.ID, map[bool]string{true: "eligible", false: "ineligible"}[*enable])
		return nil
	}
}
