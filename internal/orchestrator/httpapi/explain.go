package httpapi

import (
	"context"
	"slices"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

func (a *API) explainTable() endpoint.Table {
	return endpoint.Table{
		endpoint.Call("job.explanation", "GET", "/v1/rockpool/job/{id}/explanation", read(auth.ReadJob), a.explainJob),
	}
}

// explanation is why a job is as it is.
type explanation struct {
	Namespace  string
	JobID      string
	Status     string
	Sentence   string
	Failed     map[string]*wire.AllocationMetric // groups that find no place
	Placements []placement                       // that live
}

// placement is one allocation and what spoke for its node.
type placement struct {
	AllocID, Name, NodeID, NodeName string
	ClientStatus                    string
	Metrics                         *wire.AllocationMetric
}

// explainJob tells what a job waits for, and why what it has is where it is.
func (a *API) explainJob(ctx context.Context, _ auth.Identity, r byJob) (reply, error) {
	return a.readJob(ctx, r, func(s *state.Snapshot, w state.Watch, j *model.Job) (found, error) {
		c := sched.Circumstances{
			Job: j, Deployment: s.LatestDeployment(w, j.Namespace, j.ID), Paused: s.SchedulerConfig().PauseBroker, Now: time.Now().UnixNano(),
			Evaluations: slices.Collect(s.EvalsByJob(w, j.Namespace, j.ID)), Allocs: slices.Collect(s.AllocsByJob(w, j.Namespace, j.ID)),
		}
		out := explanation{
			Namespace: j.Namespace, JobID: j.ID, Status: j.Status, Sentence: sched.Explain(c), Failed: map[string]*wire.AllocationMetric{},
			Placements: []placement{},
		}
		for _, e := range c.Evaluations {
			if e.Status == model.EvalBlocked {
				out.Failed = wire.EvalOut(e).FailedTGAllocs
			}
		}
		for _, al := range c.Allocs {
			if !al.Terminal() {
				out.Placements = append(out.Placements, placement{al.ID, al.Name, al.NodeID, al.NodeName, al.ClientStatus, wire.MetricOut(al.Metrics)})
			}
		}
		return found{index: max(s.EvalsIndex(), s.AllocsIndex(), j.ModifyIndex), body: out}, nil
	})
}
