package node

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

// Results of a check; the words are Nomad's.
const (
	checkPending = "pending"
	checkSuccess = "success"
	checkFailure = "failure"
)

const (
	checkEvery   = 10 * time.Second
	checkTimeout = 2 * time.Second
	// checkOutput bounds what is kept of an answer.
	checkOutput = 3 << 10
)

// offer is a service that an allocation offers now.
type offer struct {
	registration *model.ServiceRegistration
	service      *model.Service
	task         string // "" = of the group
}

// offers are the services of one allocation, and the checks of them. Only the allocation's goroutine changes them.
type offers struct {
	now     []offer
	cancel  context.CancelFunc // ends the checks
	running sync.WaitGroup

	mu      sync.Mutex
	results wire.AllocCheckStatuses
	must    map[string]bool // checks whose result counts for the allocation's health
}

// update brings what is offered to what runs. While the allocation stops, it offers nothing.
func (o *offers) update(ctx context.Context, r *allocRunner, parts map[string]part, stopping bool) {
	var want []offer
	if !stopping {
		want = r.offered(parts)
	}
	if len(want) == len(o.now) && (len(want) == 0 || reflect.DeepEqual(want, o.now)) {
		return
	}
	o.end()
	o.now = want
	if reg := r.agent.registrar; reg != nil {
		services := []*model.ServiceRegistration{}
		for _, w := range want {
			services = append(services, w.registration)
		}
		reg.put(model.AllocServices{AllocID: r.id, Services: services})
	}
	o.begin(ctx, r)
}

// checkID names a check within its allocation.
func checkID(service, check string) string {
	sum := sha256.Sum256([]byte(service + "\x00" + check))
	return hex.EncodeToString(sum[:16])
}

func (o *offers) begin(ctx context.Context, r *allocRunner) {
	ctx, o.cancel = context.WithCancel(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.results, o.must = wire.AllocCheckStatuses{}, map[string]bool{}
	for _, w := range o.now {
		for _, c := range w.service.Checks {
			id := checkID(w.registration.ID, c.Name)
			o.must[id] = c.OnUpdate != "ignore" && c.OnUpdate != "ignore_warnings"
			status := wire.AllocCheckStatus{ID: id, Check: c.Name, Group: r.groupName(), Mode: "healthiness", Service: w.service.Name, Task: w.task, Status: checkPending}
			if c.OnUpdate == "ignore" {
				status.Mode = "readiness"
			}
			o.results[id] = status
			address, err := r.checked(w.service, c)
			o.running.Go(func() { o.check(ctx, r, status, c, address, err) })
		}
	}
}

// end stops the checks and waits for them.
func (o *offers) end() {
	if o.cancel != nil {
		o.cancel()
		o.cancel = nil
	}
	o.running.Wait()
}

// passing reports whether the newest result of each check that counts is a good one.
func (o *offers) passing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, s := range o.results {
		if o.must[id] && s.Status != checkSuccess {
			return false
		}
	}
	return true
}

func (o *offers) all() wire.AllocCheckStatuses {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.results == nil {
		return wire.AllocCheckStatuses{}
	}
	return maps.Clone(o.results)
}

// check repeats one check until ctx ends.
func (o *offers) check(ctx context.Context, r *allocRunner, status wire.AllocCheckStatus, c model.ServiceCheck, address string, refused error) {
	every, timeout := c.Interval, c.Timeout
	if every <= 0 {
		every = checkEvery
	}
	if timeout <= 0 {
		timeout = checkTimeout
	}
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s, err := status, refused
		if err == nil {
			bounded, cancel := context.WithTimeout(ctx, timeout)
			s.StatusCode, s.Output, err = probe(bounded, c, address)
			cancel()
		}
		if ctx.Err() != nil {
			return
		}
		s.Status, s.Timestamp = checkSuccess, time.Now().Unix()
		if err != nil {
			s.Status, s.Output = checkFailure, err.Error()
		}
		o.mu.Lock()
		changed := o.results[s.ID].Status != s.Status
		o.results[s.ID] = s
		o.mu.Unlock()
		if changed {
			r.move()
		}
		tick.Reset(every)
	}
}

// probe asks once. Redirects are not followed: a task must not send the node to other addresses than its own.
func probe(ctx context.Context, c model.ServiceCheck, address string) (status int, output string, err error) {
	if c.Type == "tcp" {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return 0, "", err
		}
		_ = conn.Close()
		return 0, "nomad: tcp ok", nil
	}
	scheme, method := "http", c.Method
	if c.Protocol == "https" {
		scheme = "https"
	}
	if method == "" {
		method = http.MethodGet
	}
	path := c.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+address+path, strings.NewReader(c.Body))
	if err != nil {
		return 0, "", err
	}
	for k, all := range c.Headers {
		for _, v := range all {
			if http.CanonicalHeaderKey(k) == "Host" {
				req.Host = v
			} else {
				req.Header.Add(k, v)
			}
		}
	}
	// The certificate of a task is its own affair: whether somebody answers is asked for, not who.
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // as said
	client := http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, checkOutput))
	if err != nil {
		return resp.StatusCode, "", err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return resp.StatusCode, "", fmt.Errorf("status %d: %s", resp.StatusCode, strings.ToValidUTF8(string(text), "?"))
	}
	return resp.StatusCode, strings.ToValidUTF8(string(text), "?"), nil
}

func (r *allocRunner) groupName() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.alloc.TaskGroup
}

// offered are the services of what runs: of the group once all its main tasks do, of a task while it does.
func (r *allocRunner) offered(parts map[string]part) []offer {
	r.mu.Lock()
	a := r.alloc
	r.mu.Unlock()
	g := a.Job.Group(a.TaskGroup)
	if g == nil {
		return nil
	}
	n := r.agent.node()
	all := len(parts) > 0
	for _, p := range parts {
		all = all && (p.phase != phaseMain || p.state.State == model.TaskRunning)
	}
	var out []offer
	add := func(s *model.Service, task *model.Task) {
		o := offer{service: s}
		owner := "group-" + g.Name
		env := map[string]string{}
		if task != nil {
			o.task, owner, env = task.Name, task.Name, placementEnv(n, a, g, task)
		}
		address, port := r.address(a, n, s.PortLabel)
		if s.Address != "" {
			address = expand(s.Address, n, env)
		}
		o.registration = &model.ServiceRegistration{
			ID: fmt.Sprintf("_nomad-task-%s-%s-%s-%s", a.ID, owner, s.Name, s.PortLabel), ServiceName: expand(s.Name, n, env), Namespace: a.Namespace, NodeID: n.ID,
			Datacenter: n.Datacenter, JobID: a.JobID, AllocID: a.ID, Address: address, Port: port,
		}
		for _, t := range s.Tags {
			o.registration.Tags = append(o.registration.Tags, expand(t, n, env))
		}
		out = append(out, o)
	}
	if all {
		for _, s := range g.Services {
			add(s, nil)
		}
	}
	for _, t := range g.Tasks {
		if parts[t.Name].state != nil && parts[t.Name].state.State == model.TaskRunning {
			for _, s := range t.Services {
				add(s, t)
			}
		}
	}
	return out
}

// address is where a port of the allocation is reached from other machines. A label that is a number is a port of the allocation itself.
func (r *allocRunner) address(a *model.Allocation, n *model.Node, label string) (string, int) {
	host := n.Attributes["unique.network.ip-address"]
	for _, p := range a.Resources.Ports {
		if p.Label == label {
			if p.HostIP != "" {
				host = p.HostIP
			}
			return host, p.Value
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.networkStatus; s != nil && s.Address != "" {
		host = s.Address
	}
	port, _ := strconv.Atoi(label)
	return host, port
}

// checked is where a check asks: the allocation's own address, or the port of the node that leads to it. A check never goes anywhere else, whatever
// address its service is registered with: the node would ask for a stranger there.
func (r *allocRunner) checked(s *model.Service, c model.ServiceCheck) (string, error) {
	label := c.PortLabel
	if label == "" {
		label = s.PortLabel
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	inside := ""
	if n := r.networkStatus; n != nil {
		inside = n.Address
	}
	i := slices.IndexFunc(r.alloc.Resources.Ports, func(p model.AllocatedPort) bool { return p.Label == label })
	if i < 0 {
		port, err := strconv.ParseUint(label, 10, 16)
		if err != nil || inside == "" {
			return "", fmt.Errorf("check %q: the allocation has no port %q", c.Name, label)
		}
		return net.JoinHostPort(inside, strconv.FormatUint(port, 10)), nil
	}
	p := r.alloc.Resources.Ports[i]
	host, port := p.HostIP, p.Value
	switch {
	case inside != "":
		host = inside
		if p.To > 0 {
			port = p.To
		}
	case host == "":
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}
