package leader

import (
	"cmp"
	"context"
	"slices"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// keptDeployments bounds those that have ended, whatever their age.
const keptDeployments = 2000

// collectLate forgets nodes that are gone for good, and deployments that are history.
func (t *term) collectLate(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Keep.Every)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			_ = t.applyAll(ctx, "the collection of nodes and deployments", lateGarbage(t.cfg.Store.Snapshot(), t.cfg.Keep, now.UnixNano()))
		case <-ctx.Done():
			return nil
		}
	}
}

// collectLate forgets them now, whatever their age if it is negative.
func (l *Leader) collectLate(ctx context.Context, age time.Duration) error {
	for _, e := range lateGarbage(l.cfg.Store.Snapshot(), Keep{Nodes: age, Deployments: age}, time.Now().UnixNano()) {
		actx, cancel := context.WithTimeout(ctx, logBound)
		_, _, err := l.cfg.Log.Apply(actx, e)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// lateGarbage is what may go by now, in steps that nobody waits long behind.
func lateGarbage(snap *state.Snapshot, k Keep, now int64) (entries []any) {
	old := func(t int64, age time.Duration) bool { return age < 0 || now-t > int64(age) }

	var nodes []string
	for n := range snap.Nodes(nil, "") {
		if n.Status == model.NodeDown && old(n.StatusUpdatedAt, k.Nodes) && holdsNothing(snap, n.ID) {
			nodes = append(nodes, n.ID)
		}
	}
	for step := range slices.Chunk(nodes, collectStep) {
		entries = append(entries, &command.NodeDeregister{Now: now, NodeIDs: step})
	}

	var ended []*model.Deployment
	for d := range snap.Deployments(nil, "") {
		if !d.Active() {
			ended = append(ended, d)
		}
	}
	slices.SortFunc(ended, func(a, b *model.Deployment) int {
		return cmp.Or(cmp.Compare(a.ModifyIndex, b.ModifyIndex), cmp.Compare(a.ID, b.ID))
	})
	var ids []string
	for i, d := range ended {
		newest := snap.Job(nil, d.Namespace, d.JobID) != nil && snap.LatestDeployment(nil, d.Namespace, d.JobID).ID == d.ID
		if old(d.ModifyTime, k.Deployments) && !newest || len(ended)-i > keptDeployments {
			ids = append(ids, d.ID)
		}
	}
	for step := range slices.Chunk(ids, collectStep) {
		entries = append(entries, &command.DeploymentDelete{Now: now, IDs: step})
	}
	return entries
}

func holdsNothing(snap *state.Snapshot, node string) bool {
	for a := range snap.AllocsByNode(nil, node) {
		if !a.ClientTerminal() {
			return false
		}
	}
	return true
}
