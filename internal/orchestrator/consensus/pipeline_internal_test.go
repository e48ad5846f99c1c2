package consensus

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// deaf is a pipeline whose answers nobody reads.
type deaf struct{ closed chan struct{} }

func (d deaf) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-d.closed
	return nil, raft.ErrPipelineShutdown
}
func (d deaf) Consumer() <-chan raft.AppendFuture { return nil }
func (d deaf) Close() error                       { close(d.closed); return nil }

func TestAPipelineThatStandsStillIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := pipeline{deaf{make(chan struct{})}}.AppendEntries(nil, nil)
		if err != raft.ErrPipelineShutdown || time.Since(began) != stuckAfter {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}
