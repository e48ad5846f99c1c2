package nomad

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
)

// possible refuses devices and isolation classes that no node has, which otherwise only a claim would find out. What is all in use is possible. The cluster is asked
// what it would do with a runner; if that cannot be learned, nothing is possible.
func (c *Client) possible(ctx context.Context, e environment.Environment) error {
	job, err := c.derive(e, strconv.Itoa(int(e.ID))+"-"+ident.New(), true)
	if err != nil {
		return err
	}
	resp, _, err := c.api.Jobs().PlanOpts(job, &api.PlanOptions{}, c.write(ctx))
	if text, ok := invalidJob(err); ok {
		return fault.Wrap(fault.Invalid, err, "the cluster does not accept what the environment asks for: %s", text)
	}
	if err = classify(err, "ask the cluster to plan a runner"); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "whether any node can run the environment's runners could not be found out: %s", fault.Public(err))
	}
	why := refusalOf(resp.FailedTGAllocs[mainGroup])
	if why == nil || why.NodesEvaluated == 0 { // without any node in service that is what the template's placement tells
		return nil
	}
	there, known, err := c.nodes(ctx)
	if err != nil {
		return err
	}
	if known {
		_, task := mainOf(job)
		if text := lacking(there, task.Driver, e); text != "" {
			return fault.New(fault.Invalid, "%s", text)
		}
	}
	if why.later() {
		return nil
	}
	return fault.New(fault.Invalid, "no node can run the environment's runners, whatever is free: %s", why)
}

// invalidJob is what a cluster says of a job that it refuses for what stands in it. Nomad lists such errors under status 500.
func invalidJob(err error) (text string, ok bool) {
	e, ok := errors.AsType[api.UnexpectedResponseError](err)
	if !ok || e.StatusCode() != http.StatusBadRequest && !(strings.Contains(e.Body(), "error occurred:") || strings.Contains(e.Body(), "errors occurred:")) {
		return "", false
	}
	return oneLine(e.Body()), true
}

// asksAnew reports whether e asks for devices or a class that it did not ask for before; before = nil where there was no template.
func asksAnew(before *api.Job, e environment.Environment) bool {
	if len(e.Devices) == 0 && e.Runtime == "" {
		return false
	}
	if before == nil {
		return true
	}
	old := settingsOf(before, e.ID)
	return environment.Environment{Devices: old.Devices, Runtime: old.Runtime}.Settings() != environment.Environment{Devices: e.Devices, Runtime: e.Runtime}.Settings()
}

// refusalOf is nil where there is none.
func refusalOf(m *api.AllocationMetric) *refusal {
	if m == nil {
		return nil
	}
	return &refusal{m.NodesEvaluated, m.NodesFiltered, m.NodesExhausted, m.ConstraintFiltered, m.DimensionExhausted}
}

// later reports whether a node lacks nothing but what somebody else uses now.
func (r *refusal) later() bool { return r.NodesExhausted > 0 }

// offer is what a node in service has.
type offer struct {
	Status, SchedulingEligibility string
	Drain                         bool
	Drivers                       map[string]*api.DriverInfo
	NodeResources                 struct{ Devices []*api.NodeDeviceResource }
}

// nodes are those that get new work; known = false: the token may not see them.
func (c *Client) nodes(ctx context.Context) (there []*offer, known bool, err error) {
	q := c.query(ctx)
	q.Params = map[string]string{"resources": "true"}
	_, err = c.api.Raw().Query("/v1/nodes", &there, q)
	if err = classify(err, "list nodes"); fault.Is(err, fault.Forbidden) {
		return nil, false, nil
	}
	there = slices.DeleteFunc(there, func(n *offer) bool {
		return n == nil || n.Status != "ready" || n.Drain || n.SchedulingEligibility == "ineligible"
	})
	return there, err == nil, err
}

// lacking says what no node has of what is asked for by name and number; "" = it is there, as far as names and numbers say.
func lacking(there []*offer, driver string, e environment.Environment) string {
	if len(there) == 0 {
		return "" // the plan saw some
	}
	if names, limited := classes(there, driver); e.Runtime != "" && limited && !slices.Contains(names, e.Runtime) {
		offered := "none besides their default"
		if len(names) > 0 {
			offered = strings.Join(names, ", ")
		}
		return fmt.Sprintf("runtime: no node offers the isolation class %q; the nodes in service offer %s", e.Runtime, offered)
	}
	kinds := map[string]int{}
	for i, d := range e.Devices {
		clear(kinds)
		healthy, ailing := 0, 0
		for _, n := range there {
			for _, x := range n.NodeResources.Devices {
				good := healthyOf(x)
				kinds[x.ID()] += good
				if d.Names(x.Vendor, x.Type, x.Name) {
					healthy, ailing = max(healthy, good), ailing+len(x.Instances)-good
				}
			}
		}
		switch {
		case healthy >= int(d.Count):
		case healthy == 0 && ailing > 0:
			return fmt.Sprintf("devices[%d]: all devices %s of the nodes in service are unhealthy", i, d.Name)
		case healthy == 0:
			return fmt.Sprintf("devices[%d]: no node in service has a device %s; there are %s", i, d.Name, counted(kinds))
		default:
			return fmt.Sprintf("devices[%d]: no node in service has %d healthy devices %s of one model; the most on one node are %d", i, d.Count, d.Name, healthy)
		}
	}
	if !slices.ContainsFunc(there, func(n *offer) bool { return n.covers(e.Devices) }) {
		return fmt.Sprintf("devices: no node in service has all of them together; on all nodes there are %s", counted(kinds))
	}
	return ""
}

// covers reports whether a node has as many healthy devices as all requests together need, by their names. Conditions may need more.
func (n *offer) covers(all []environment.Device) bool {
	return !slices.ContainsFunc(all, func(d environment.Device) bool {
		has, needed := 0, 0
		for _, x := range n.NodeResources.Devices {
			if d.Names(x.Vendor, x.Type, x.Name) {
				has += healthyOf(x)
			}
		}
		for _, other := range all {
			if d.Covers(other) {
				needed += int(other.Count)
			}
		}
		return has < needed
	})
}

func healthyOf(x *api.NodeDeviceResource) (n int) {
	for _, in := range x.Instances {
		if in != nil && in.Healthy {
			n++
		}
	}
	return n
}

// classes are the isolation classes that nodes tell of for a driver; limited = false: one of them takes any name.
func classes(there []*offer, driver string) (names []string, limited bool) {
	all := map[string]bool{}
	for _, n := range there {
		d := n.Drivers[driver]
		if d == nil || !d.Detected || !d.Healthy {
			continue
		}
		list, ok := d.Attributes["driver."+driver+".runtimes"]
		if !ok {
			list, ok = d.Attributes["runtimes"]
		}
		if !ok {
			return nil, false
		}
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" {
				all[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all)), true
}

// shownKinds bounds how many kinds of devices a reason lists.
const shownKinds = 20

func counted(kinds map[string]int) string {
	if len(kinds) == 0 {
		return "none of any kind"
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		if len(list) == shownKinds {
			list = append(list, "and others")
			break
		}
		list = append(list, fmt.Sprintf("%d %s", kinds[k], k))
	}
	return strings.Join(list, ", ")
}
