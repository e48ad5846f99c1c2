// Package propose brings entries onto the log, many in one where many wait: group commit above Raft.
//
// Raft lets entries share an fsync already. What each still costs alone is a place in the log, a future, a transaction and a round of wake-ups; under load
// these are most of what a small entry costs. So what waits while an append is under way leaves in one [command.Batch] after it. An entry that finds nobody
// waiting leaves at once and alone, so that an idle cluster pays nothing for this.
//
// Bounds: the queue, the number of entries and of bytes in a batch, and the batches under way. A full queue makes callers wait under their own deadlines.
package propose

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/timeline"
)

// Log is what entries are brought onto; see consensus.Raft.
type Log interface {
	// Apply returns what the state made of the entry; an error of the state's comes with the index.
	Apply(ctx context.Context, entry []byte) (result any, index uint64, err error)
}

const (
	queueLength = 4096 // entries that wait
	maxEntries  = 256  // in a batch
	maxBytes    = 1 << 20
	// One batch is on its way to the disk while the one before is applied.
	underWay   = 2
	applyBound = 10 * time.Second // of a batch; callers have deadlines of their own
)

// Proposer is the one way onto the log for entries that many callers make at a time.
type Proposer struct {
	log   Log
	share func() bool
	queue chan *proposal
	ended chan struct{}

	// Figures since the start.
	entries, appends atomic.Uint64
}

type proposal struct {
	gone   <-chan struct{} // closed when the caller has left: what it wanted is not proposed any more
	data   []byte
	key    string
	answer chan answer    // of 1
	span   *timeline.Span // of the caller; nil = it is not recorded
}

type answer struct {
	result any
	index  uint64
	err    error
}

// New makes a proposer. Entries wait until Run. share says whether all servers know what a Batch is; until they do, each entry goes alone. nil = they do.
func New(l Log, share func() bool) *Proposer {
	return &Proposer{log: l, share: share, queue: make(chan *proposal, queueLength), ended: make(chan struct{})}
}

// Apply encodes an entry, brings it onto the log, and returns what the state made of it. When ctx ends first the outcome is not known.
func (p *Proposer) Apply(ctx context.Context, entry any) (result any, index uint64, err error) {
	data, err := command.Encode(entry)
	if err != nil {
		return nil, 0, err
	}
	key, shares := command.Batchable(entry)
	if !shares || len(data) > maxBytes/2 {
		p.count(1)
		return p.log.Apply(ctx, data)
	}
	w := &proposal{ctx.Done(), data, key, make(chan answer, 1), timeline.From(ctx)}
	select {
	case p.queue <- w:
	case <-p.ended:
		return nil, 0, errEnded()
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("wait for a place in the log's queue: %w", context.Cause(ctx))
	}
	select {
	case a := <-w.answer:
		return a.result, a.index, a.err
	case <-p.ended:
		select { // it may have been answered last of all
		case a := <-w.answer:
			return a.result, a.index, a.err
		default:
			return nil, 0, errEnded()
		}
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("wait for the log: %w", context.Cause(ctx))
	}
}

func errEnded() error { return fault.New(fault.Unavailable, "No cluster leader") }

func (p *Proposer) count(entries int) {
	p.entries.Add(uint64(entries))
	p.appends.Add(1)
}

// Waiting is how many entries are in the queue, and how many it holds.
func (p *Proposer) Waiting() (n, of int) { return len(p.queue), cap(p.queue) }

// Counts are how many entries were brought onto the log since the start, in how many appends.
func (p *Proposer) Counts() (entries, appends uint64) { return p.entries.Load(), p.appends.Load() }

// Run brings entries onto the log until ctx ends. Those that wait then are refused.
func (p *Proposer) Run(ctx context.Context) error {
	defer close(p.ended)
	var wg sync.WaitGroup
	for range underWay {
		wg.Go(func() {
			var kept *proposal // that could not be in the last batch
			for {
				first := kept
				if kept = nil; first == nil {
					select {
					case first = <-p.queue:
					case <-ctx.Done():
						return
					}
				}
				var batch []*proposal
				batch, kept = p.gather(first)
				p.propose(ctx, batch)
			}
		})
	}
	wg.Wait()
	return nil
}

// gather takes what waits beside first, until the batch is full or the next one must not be in it: that one is returned.
func (p *Proposer) gather(first *proposal) (batch []*proposal, kept *proposal) {
	batch = append(batch, first)
	size := len(first.data)
	taken := map[string]bool{first.key: true}
	for len(batch) < maxEntries && size < maxBytes {
		select {
		case w := <-p.queue:
			if w.key != "" && taken[w.key] {
				return batch, w
			}
			taken[w.key] = true
			batch = append(batch, w)
			size += len(w.data)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

func (p *Proposer) propose(ctx context.Context, batch []*proposal) {
	there := batch[:0]
	for _, w := range batch {
		select {
		case <-w.gone:
		default:
			there = append(there, w)
		}
	}
	if len(there) == 0 {
		return
	}
	// The end of ctx does not end an append under way: its outcome would be unknown, although Raft still runs and will tell.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyBound)
	defer cancel()
	if len(there) == 1 { // without a goroutine of its own: whoever waits is woken last, and so is the next to run
		p.count(1)
		result, index, err := p.log.Apply(timeline.With(ctx, there[0].span), there[0].data)
		there[0].answer <- answer{result, index, err}
		return
	}
	if p.share != nil && !p.share() {
		var wg sync.WaitGroup
		for _, w := range there {
			p.count(1)
			wg.Go(func() {
				result, index, err := p.log.Apply(timeline.With(ctx, w.span), w.data)
				w.answer <- answer{result, index, err}
			})
		}
		wg.Wait()
		return
	}
	p.count(len(there))
	data := make([][]byte, len(there))
	for i, w := range there {
		data[i] = w.data
	}
	shared := make([]*timeline.Span, len(there))
	for i, w := range there {
		shared[i] = w.span.Child(timeline.LogShared)
	}
	entry, err := command.Encode(&command.Batch{Now: time.Now().UnixNano(), Entries: data})
	var result any
	var index uint64
	if err == nil {
		result, index, err = p.log.Apply(ctx, entry)
	}
	for _, s := range shared {
		s.Fail(err)
		s.End()
	}
	results, ok := result.([]any)
	if err == nil && (!ok || len(results) != len(there)) {
		err = fault.New(fault.Internal, "the log answered a batch of %d with %T", len(there), result)
	}
	for i, w := range there {
		switch {
		case err != nil:
			w.answer <- answer{err: err}
		default:
			refused, _ := results[i].(error)
			if refused != nil {
				w.answer <- answer{nil, index, refused}
			} else {
				w.answer <- answer{results[i], index, nil}
			}
		}
	}
}
