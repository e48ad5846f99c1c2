package standin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
)

// Node is one of the cluster's.
type Node struct {
	ID, Name string
	Runtimes string // of its Docker engine, separated by commas
	Devices  []*api.NodeDeviceResource
}

// plain is the node that a cluster has which was told of none.
var plain = Node{ID: "11111111-1111-1111-1111-111111111111", Name: "n1", Runtimes: "io.containerd.runc.v2,runc"}

// GPUs are instances of a model, with more attributes than the memory in MiB.
func GPUs(model string, count, memory int, attributes map[string]string) *api.NodeDeviceResource {
	d := &api.NodeDeviceResource{Vendor: "nvidia", Type: "gpu", Name: model, Attributes: map[string]*api.Attribute{"memory": {IntVal: new(int64(memory)), Unit: "MiB"}}}
	for name, value := range attributes {
		d.Attributes[name] = &api.Attribute{StringVal: new(value)}
	}
	for range count {
		d.Instances = append(d.Instances, &api.NodeDevice{ID: "GPU-" + ident.New(), Healthy: true})
	}
	return d
}

// Nodes says which nodes there are from now on. What ran on others is lost, and what waits for a place is looked at again.
func (s *Server) Nodes(nodes ...Node) {
	s.mu.Lock()
	s.nodes = nodes
	var boxes []*container
	for _, a := range s.allocs {
		if a.ClientStatus == "running" && !slices.ContainsFunc(nodes, func(n Node) bool { return n.ID == a.NodeID }) {
			boxes = append(boxes, a.box)
			a.box = nil
			s.update(a, "lost", a.TaskStates["default-task"])
		}
	}
	s.unblock()
	s.mu.Unlock()
	for _, b := range boxes {
		if b != nil {
			b.stop()
		}
	}
}

// Evaluations is how many the cluster has made so far.
func (s *Server) Evaluations() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.evals) }

// Blocked is how many jobs wait for a place.
func (s *Server) Blocked() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.blocked) }

// block ends an evaluation that found no room, and has another one wait for it; one that waited goes on doing so. The lock is held.
func (s *Server) block(eval *api.Evaluation, why *api.AllocationMetric) {
	if eval.Status == "blocked" {
		s.blocked = append(s.blocked, eval)
		return
	}
	s.index++
	eval.Status, eval.FailedTGAllocs, eval.ModifyIndex = "complete", map[string]*api.AllocationMetric{"default-group": why}, s.index
	next := &api.Evaluation{ID: ident.New(), JobID: eval.JobID, Namespace: "default", Status: "blocked", TriggeredBy: "queued-allocs", PreviousEval: eval.ID, CreateIndex: s.index, ModifyIndex: s.index}
	s.evals[next.ID] = next
	s.blocked = append(s.blocked, next)
	s.publish("EvaluationUpdated", event{"Evaluation", eval.ID, map[string]any{"Evaluation": eval}}, event{"Evaluation", next.ID, map[string]any{"Evaluation": next}})
}

// unblock tries to place what waits, in the order in which it came. The lock is held.
func (s *Server) unblock() {
	waiting := s.blocked
	s.blocked = nil
	for _, e := range waiting {
		if job := s.jobs[e.JobID]; job != nil {
			s.place(job, e, true)
		}
	}
}

// fit finds a node for a job and its devices, or says why there is none. The lock is held.
func (s *Server) fit(job *api.Job) (node Node, devices []*api.AllocatedDeviceResource, why *api.AllocationMetric) {
	why = &api.AllocationMetric{NodesEvaluated: len(s.nodes), ConstraintFiltered: map[string]int{}, DimensionExhausted: map[string]int{}}
	if s.noRoom {
		why.NodesEvaluated, why.NodesExhausted, why.DimensionExhausted["memory"] = 2, 2, 2
		return node, nil, why
	}
	held := map[string]bool{}
	for _, a := range s.allocs {
		if a.ClientStatus == "pending" || a.ClientStatus == "running" {
			for _, t := range a.AllocatedResources.Tasks {
				for _, d := range t.Devices {
					for _, id := range d.DeviceIDs {
						held[id] = true
					}
				}
			}
		}
	}
	task := job.TaskGroups[0].Tasks[0]
	for _, n := range s.nodes {
		filtered := ""
		for _, c := range task.Constraints {
			if c.LTarget != "${attr.driver.docker.runtimes}" || c.Operand != "set_contains" {
				panic("the stand-in does not know constraints on " + c.LTarget)
			}
			if !slices.Contains(strings.Split(n.Runtimes, ","), c.RTarget) {
				filtered = strings.Join([]string{c.LTarget, c.Operand, c.RTarget}, " ")
			}
		}
		if _, ok := assign(n, task, map[string]bool{}); !ok {
			filtered = "missing devices"
		}
		if filtered != "" {
			why.NodesFiltered++
			why.ConstraintFiltered[filtered]++
			continue
		}
		if devices, ok := assign(n, task, held); ok {
			return n, devices, nil
		}
		why.NodesExhausted++
		why.DimensionExhausted["devices: no devices match request"]++
	}
	return node, nil, why
}

// assign gives a task instances of a node that are not held.
func assign(n Node, task *api.Task, held map[string]bool) (given []*api.AllocatedDeviceResource, ok bool) {
	taken := map[string]bool{}
	for _, r := range task.Resources.Devices {
		found := false
		for _, d := range n.Devices {
			if !named(r.Name, d) || slices.ContainsFunc(r.Constraints, func(c *api.Constraint) bool { return !meets(d, c) }) {
				continue
			}
			var ids []string
			for _, in := range d.Instances {
				if in.Healthy && !held[in.ID] && !taken[in.ID] && len(ids) < int(*r.Count) {
					ids = append(ids, in.ID)
				}
			}
			if len(ids) == int(*r.Count) {
				for _, id := range ids {
					taken[id] = true
				}
				given = append(given, &api.AllocatedDeviceResource{Vendor: d.Vendor, Type: d.Type, Name: d.Name, DeviceIDs: ids})
				found = true
				break
			}
		}
		if !found {
			return nil, false
		}
	}
	return given, true
}

func named(request string, d *api.NodeDeviceResource) bool {
	return slices.Contains([]string{d.Type, d.Vendor + "/" + d.Type, d.ID()}, request)
}

// meets knows as much of Nomad's conditions as the tests need.
func meets(d *api.NodeDeviceResource, c *api.Constraint) bool {
	a := d.Attributes[strings.TrimSuffix(strings.TrimPrefix(c.LTarget, "${device.attr."), "}")]
	switch c.Operand {
	case "is_set":
		return a != nil
	case "is_not_set":
		return a == nil
	case "=":
		return a != nil && a.StringVal != nil && *a.StringVal == c.RTarget
	case ">=":
		var least int64
		if _, err := fmt.Sscanf(c.RTarget, "%d GiB", &least); err != nil {
			panic(err)
		}
		return a != nil && a.IntVal != nil && *a.IntVal >= least<<10
	}
	panic("the stand-in does not know the operator " + c.Operand)
}

// plan answers what a registration would come to.
func (s *Server) plan(w http.ResponseWriter, r *http.Request) {
	var req api.JobPlanRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Job == nil || *req.Job.ID != r.PathValue("id") {
		http.Error(w, "Job ID does not match", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	_, _, why := s.fit(req.Job)
	s.mu.Unlock()
	resp := api.JobPlanResponse{Annotations: &api.PlanAnnotations{}}
	if why != nil {
		resp.FailedTGAllocs = map[string]*api.AllocationMetric{"default-group": why}
	}
	s.answer(w, resp)
}

// listNodes answers stubs. Devices are told only to who asks for resources.
func (s *Server) listNodes(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	list := []*api.NodeListStub{{ID: "99999999-9999-9999-9999-999999999999", Name: "away", Status: "down", SchedulingEligibility: "eligible",
		NodeResources: &api.NodeResources{Devices: []*api.NodeDeviceResource{GPUs("away", 64, 1<<20, nil)}}}}
	for _, n := range s.nodes {
		stub := &api.NodeListStub{ID: n.ID, Name: n.Name, Status: "ready", SchedulingEligibility: "eligible",
			Drivers: map[string]*api.DriverInfo{"docker": {Detected: true, Healthy: true, Attributes: map[string]string{"driver.docker": "1", "driver.docker.runtimes": n.Runtimes}}}}
		if r.URL.Query().Get("resources") == "true" {
			stub.NodeResources = &api.NodeResources{Devices: n.Devices}
		}
		list = append(list, stub)
	}
	s.mu.Unlock()
	s.answer(w, list)
}

// evaluations are those of a job.
func (s *Server) evaluations(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	list := []*api.Evaluation{}
	for _, e := range s.evals {
		if e.JobID == r.PathValue("id") {
			list = append(list, clone(e))
		}
	}
	s.mu.Unlock()
	s.answer(w, list)
}
