package consensus

import (
	"time"

	"github.com/hashicorp/raft"
)

// transport is the library's over TCP, with pipelines that never stand still.
type transport struct{ *raft.NetworkTransport }

// AppendEntriesPipeline opens one to a follower.
func (t transport) AppendEntriesPipeline(id raft.ServerID, at raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, at)
	if err != nil {
		return nil, err
	}
	return pipeline{p}, nil
}

// pipeline is closed when it takes nothing for too long. In raft v1.8.0 replication leaves off reading answers after one that refuses entries, as a follower
// with a full disk gives it, and may send once more before it notices. That call would wait for ever for somebody to read the answer before: the follower
// would get nothing more from this leader, and the end of Raft would wait for it too.
type pipeline struct{ raft.AppendPipeline }

// stuckAfter is longer than the answer before may take.
const stuckAfter = rpcTimeout + rpcTimeout/4

func (p pipeline) AppendEntries(in *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	stuck := time.AfterFunc(stuckAfter, func() { _ = p.Close() })
	defer stuck.Stop()
	return p.AppendPipeline.AppendEntries(in, out)
}
