package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Changes are the events of a cluster in this process, without their form on the wire.
type Changes interface {
	// Next waits for what the next entry of the log has changed. An error says that the changes that follow are not known.
	Next(ctx context.Context) (index uint64, list []Change, err error)
}

// Change is one event.
type Change struct {
	Topic, Type, Key string
	// Object is what changed, as nomad/api has it: *api.Job, *api.Evaluation or *api.Allocation. It is shared: nothing of it may be written to.
	Object func() any
}

// feed is where events come from.
type feed interface {
	// next waits for the events of the next index; 0 = it is a sign of life, and there are none.
	next(ctx context.Context) (index uint64, list []event, err error)
	close()
}

// event is one that has come.
type event struct {
	topic, kind, key string
	index            uint64
	data             json.RawMessage // as it came
	object           func() any      // instead of data, of a cluster in this process
}

type payload struct {
	Job        *api.Job
	Evaluation *evaluation
	Allocation *allocation
}

// payload is what it tells. That takes some time, so only who needs it asks.
func (e *event) payload() (p payload, err error) {
	if e.object == nil {
		if err := json.Unmarshal(e.data, &p); err != nil {
			return p, fmt.Errorf("decode an event of topic %s: %w", e.topic, err)
		}
		return p, nil
	}
	switch o := e.object().(type) {
	case *api.Job:
		p.Job = o
	case *api.Evaluation:
		p.Evaluation = &evaluation{
			ID: o.ID, JobID: o.JobID, Status: o.Status, StatusDescription: o.StatusDescription, ModifyIndex: o.ModifyIndex, FailedTGAllocs: refusalsOf(o),
		}
	case *api.Allocation:
		p.Allocation = &allocation{
			ID: o.ID, JobID: o.JobID, TaskGroup: o.TaskGroup, NodeID: o.NodeID, DesiredStatus: o.DesiredStatus, ClientStatus: o.ClientStatus,
			ClientDescription: o.ClientDescription, PreviousAllocation: o.PreviousAllocation, TaskStates: o.TaskStates, AllocatedResources: o.AllocatedResources,
			CreateIndex: o.CreateIndex, CreateTime: o.CreateTime, ModifyTime: o.ModifyTime,
		}
	}
	return p, nil
}

func refusalsOf(e *api.Evaluation) map[string]*refusal {
	if e.FailedTGAllocs == nil {
		return nil
	}
	all := make(map[string]*refusal, len(e.FailedTGAllocs))
	for group, m := range e.FailedTGAllocs {
		all[group] = refusalOf(m)
	}
	return all
}

// events opens the feed: whatever changes from now on. cancel ends ctx.
func (c *Client) events(ctx context.Context, cancel context.CancelCauseFunc) (feed, error) {
	if open := c.opts.Inside.Changes; open != nil {
		changes, err := open(c.opts.Namespace)
		if err != nil {
			return nil, fmt.Errorf("open the event stream: %w", err)
		}
		return handed{changes}, nil
	}
	stream, err := c.api.Raw().Response("/v1/event/stream?topic=Job&topic=Evaluation&topic=Allocation&index=0", c.query(ctx))
	if err != nil {
		return nil, classify(err, "open the event stream")
	}
	limit := &lineLimit{from: stream, left: maxEvents}
	return &lines{stream: stream, limit: limit, decoder: json.NewDecoder(limit), alive: time.AfterFunc(silentTime, func() {
		cancel(errors.New("nothing was heard of the cluster"))
	})}, nil
}

// handed is the feed of a cluster in this process.
type handed struct{ Changes }

func (h handed) next(ctx context.Context) (uint64, []event, error) {
	index, list, err := h.Next(ctx)
	if err != nil {
		return 0, nil, fmt.Errorf("read the event stream: %w", err)
	}
	out := make([]event, len(list))
	for i, ch := range list {
		out[i] = event{topic: ch.Topic, kind: ch.Type, key: ch.Key, index: index, object: ch.Object}
	}
	return index, out, nil
}

func (handed) close() {}

// lines is the feed of one connection: a line of JSON for each index.
type lines struct {
	stream  io.ReadCloser
	limit   *lineLimit
	decoder *json.Decoder
	alive   *time.Timer
	heard   bool
}

// frame is one line of the event stream. nomad/api decodes through generic maps, which loses precision and time; here a payload is decoded
// once, and only when it matters.
type frame struct {
	Index  uint64
	Error  json.RawMessage // of a server that says why it ends the stream
	Events []struct {
		Topic, Type, Key string
		Index            uint64
		Payload          json.RawMessage
	}
}

func (l *lines) next(ctx context.Context) (uint64, []event, error) {
	var fr frame
	err := l.decoder.Decode(&fr)
	switch {
	case errors.Is(err, io.EOF) && !l.heard:
		return 0, nil, errors.New("the cluster ended the event stream without a word: the token must be allowed to read jobs in the namespace")
	case err != nil:
		return 0, nil, fmt.Errorf("read the event stream: %w", errors.Join(err, context.Cause(ctx)))
	case len(fr.Error) > 0 && string(fr.Error) != "null":
		return 0, nil, fmt.Errorf("the cluster ended the event stream: %.500s", fr.Error)
	}
	l.heard, l.limit.left = true, maxEvents
	l.alive.Reset(silentTime)
	out := make([]event, len(fr.Events))
	for i, ev := range fr.Events {
		if ev.Index == 0 {
			ev.Index = fr.Index
		}
		out[i] = event{topic: ev.Topic, kind: ev.Type, key: ev.Key, index: ev.Index, data: ev.Payload}
	}
	return fr.Index, out, nil
}

func (l *lines) close() {
	l.alive.Stop()
	_ = l.stream.Close()
}

// lineLimit bounds what is read without an end of line.
type lineLimit struct {
	from io.Reader
	left int
}

func (l *lineLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("an event takes more than %d bytes", maxEvents)
	}
	n, err := l.from.Read(p)
	l.left -= n
	return n, err
}
