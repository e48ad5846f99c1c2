package sched_test

import (
	"fmt"
	"iter"
	"slices"
	"testing"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// standing is a world whose fleet is kept, as a leader keeps it.
type standing struct {
	*world
	fleet *sched.Fleet
}

func (s standing) Fleet() *sched.Fleet { return s.fleet }
func (s standing) NamespaceQuota(ns string) (*model.Quota, sched.Usage) {
	return nil, s.fleet.Namespace(ns)
}
func (s standing) AllocsByJob(_, _ string) iter.Seq[*model.Allocation] {
	return slices.Values(s.allocs)
}

func cluster(nodes int) standing {
	w := &world{}
	for i := range nodes {
		n := node(fmt.Sprint("n", i), 10_000, 10_000)
		n.Attributes["unique.hostname"] = n.Name
		n.Meta = map[string]string{"rack": fmt.Sprint("r", i%75)}
		n.ComputedClass = n.ComputeClass()
		w.nodes = append(w.nodes, n)
	}
	return standing{w, sched.NewFleet(slices.Values(w.nodes), slices.Values(w.allocs))}
}

func bench(b *testing.B, s standing, count int) {
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		d := sched.Schedule(s, &model.Evaluation{ID: fmt.Sprint("e", i), Namespace: "default", JobID: "j"}, 0)
		if len(d.Place) != count {
			b.Fatal(len(d.Place), d.Failed)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/placement")
}

func BenchmarkBatchOf1000On10000Nodes(b *testing.B) {
	s := cluster(10_000)
	s.job = job(1000)
	bench(b, s, 1000)
}

func BenchmarkServiceOf1000On10000Nodes(b *testing.B) {
	s := cluster(10_000)
	s.job = job(1000)
	s.job.Type = model.JobTypeService
	bench(b, s, 1000)
}

func BenchmarkOneOn10000Nodes(b *testing.B) {
	s := cluster(10_000)
	s.job = job(1)
	bench(b, s, 1)
}

func BenchmarkSpreadOverRacksOn5000Nodes(b *testing.B) {
	s := cluster(5000)
	s.job = job(1000)
	s.job.Spreads = []model.Spread{{Attribute: "${meta.rack}", Weight: 100}}
	bench(b, s, 1000)
}

func BenchmarkSpreadOverNodesAndRacksOn5000Nodes(b *testing.B) {
	s := cluster(5000)
	s.job = job(1000)
	s.job.Spreads = []model.Spread{{Attribute: "${meta.rack}", Weight: 50}, {Attribute: "${node.unique.name}", Weight: 50}}
	bench(b, s, 1000)
}

// BenchmarkFleetTakesACommit measures what keeping the sums costs for each commit of one allocation among 10,000 nodes.
func BenchmarkFleetTakesACommit(b *testing.B) {
	s := cluster(10_000)
	f := s.fleet
	a := &model.Allocation{ID: "a", Namespace: "default", NodeID: "n77", DesiredStatus: model.DesiredRun, Resources: model.AllocatedResources{
		Tasks: map[string]*model.AllocatedTask{"t": {CPU: 1, MemoryMB: 1}}}}
	b.ReportAllocs()
	for b.Loop() {
		e := f.Edit()
		e.Alloc(nil, a)
		f = e.Done()
	}
}
