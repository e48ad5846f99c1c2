package httpapi

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

const (
	streamIdle  = 15 * time.Second // between heartbeats
	streamBound = 40 * time.Second // for a reader to take what is written in one piece
	streamPiece = 64 << 10         // bytes from on which lines are sent, though more could follow
	maxTopics   = 256              // each event is held against all of them
)

type streamEvents struct {
	Namespace string   `query:"namespace"`
	Index     uint64   `query:"index"`
	Topics    []string `query:"topic"`
}

var topics = map[string]bool{}

func init() {
	for t := range strings.FieldsSeq(`Deployment Evaluation Allocation Job Node NodePool Service ACLPolicy ACLToken ACLRole ACLAuthMethod
		ACLBindingRule HostVolume CSIVolume CSIPlugin Operator Variable Namespace *`) {
		topics[t] = true
	}
}

// streamEvents writes a line for each log entry with events that the reader wants, and {} while there are none.
func (a *API) streamEvents(w http.ResponseWriter, r *http.Request, id auth.Identity, req streamEvents) error {
	f := events.Filter{Namespace: req.Namespace, Topics: map[string][]string{}}
	if f.Namespace == "" {
		f.Namespace = model.DefaultNamespace
	}
	if len(req.Topics) > maxTopics {
		return fault.New(fault.Invalid, "a stream has at most %d topics, not %d", maxTopics, len(req.Topics))
	}
	for _, t := range req.Topics {
		topic, key, ok := strings.Cut(t, ":")
		if !ok {
			key = "*"
		}
		if !topics[topic] {
			return fault.New(fault.Invalid, "Invalid topic: %s", topic)
		}
		f.Topics[topic] = append(f.Topics[topic], key)
	}
	if err := mayStream(id, f); err != nil {
		return err
	}
	f.Allowed = func(e *events.Event) bool { return mayRead(id, e.Topic, e.Namespace) }
	sub, err := a.cfg.Events.Subscribe(req.Index, f)
	if err != nil {
		return fault.New(fault.Gone, "%s", err.Error())
	}
	ctx, done, err := a.conns.begin(r.Context(), a.closing)
	if err != nil {
		return err
	}
	defer done()
	a.readers.Add(1)
	defer a.readers.Add(-1)
	ctx, end := a.whileAllowed(ctx, id.Expires, func() bool {
		now, err := a.identify(a.store.Snapshot(), token(r))
		return err == nil && sameRights(now, id)
	})
	defer end()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-cache")
	h.Set("Connection", "close")
	rc := http.NewResponseController(w)
	var line jsonform.Writer
	send := func() error {
		_ = rc.SetWriteDeadline(time.Now().Add(streamBound))
		if _, err := w.Write(line.Bytes()); err != nil {
			return err
		}
		return rc.Flush()
	}
	line.WriteString("{}\n")
	for ctx.Err() == nil { // however much there is still to be sent
		if err := send(); err != nil {
			return nil //nolint:nilerr // the reader is gone
		}
		line.Reset()
		nctx, cancel := context.WithTimeoutCause(ctx, streamIdle, errIdle)
		index, batch, err := sub.Next(nctx)
		cancel()
		for ; err == nil && line.Len() < streamPiece; index, batch, err = sub.Next(nctx) { // and what is there already
			a.writeFrame(&line, index, batch)
		}
		switch {
		case line.Len() > 0: // the error comes again, if it is one
			if err == nil {
				a.writeFrame(&line, index, batch)
			}
		case errors.Is(err, errIdle):
			line.WriteString("{}\n")
		case errors.Is(err, events.ErrSlow):
			return fault.New(fault.Gone, "%s", err.Error())
		default:
			return nil //nolint:nilerr // the reader or the server ends
		}
	}
	return nil
}

// writeFrame writes the events of one log entry as a line. What is made for the only reader there is is not kept for others.
func (a *API) writeFrame(line *jsonform.Writer, index uint64, batch []*events.Event) {
	line.WriteString(`{"Index":`)
	line.Uint(index)
	line.WriteString(`,"Events":`)
	jsonform.List(line, batch, func(line *jsonform.Writer, e *events.Event) {
		if a.readers.Load() > 1 {
			line.Raw(e.Encoded(encodeEvent))
		} else {
			writeEvent(line, e)
		}
	})
	line.WriteString("}\n")
}

var errIdle = errors.New("no event for a while")

// payload is the form on the wire of one type of object that events carry.
type payload struct {
	object reflect.Type
	name   string // its key in Payload
	write  func(*jsonform.Writer, any)
}

func payloadOf[T any](name string, out func(*T) any) payload {
	return payloadWritten(name, func(w *jsonform.Writer, o *T) { w.Value(out(o)) })
}

func payloadWritten[T any](name string, write func(*jsonform.Writer, *T)) payload {
	return payload{reflect.TypeFor[*T](), name, func(w *jsonform.Writer, o any) { write(w, o.(*T)) }}
}

// corePayloads belong to the core of events' table of topics. Other areas have lists of their own; see payloads.
var corePayloads = []payload{
	payloadOf("Job", func(j *model.Job) any {
		out := wire.JobOut(j)
		out.Payload = nil // Nomad's client cannot read an event that has one
		return out
	}),
	payloadOf("Evaluation", func(e *model.Evaluation) any { return wire.EvalOut(e) }),
	payloadWritten("Allocation", wire.WriteAllocWithoutJob),
	payloadOf("Deployment", func(d *model.Deployment) any { return wire.DeploymentOut(d) }),
	payloadOf("Node", func(n *model.Node) any { return wire.NodeOut(n) }),
}

var payloads = func() map[reflect.Type]payload {
	m := map[reflect.Type]payload{}
	for _, p := range slices.Concat(corePayloads, accessPayloads) {
		m[p.object] = p
	}
	return m
}()

// encodeEvent makes an event's form on the wire.
func encodeEvent(e *events.Event) []byte {
	w := newJSONWriter()
	defer w.release()
	writeEvent(&w.Writer, e)
	return bytes.Clone(w.Bytes())
}

// writeEvent writes an event's form on the wire.
func writeEvent(w *jsonform.Writer, e *events.Event) {
	writeEventForm(w, e)
	if err := w.Err(); err != nil {
		panic("httpapi: an event cannot be encoded: " + err.Error())
	}
}

var writeEventForm = jsonform.Of(struct {
	Topic, Type, Key, Namespace string
	FilterKeys                  []string
	Index                       uint64
	Payload                     struct{}
}{"topic", "type", "key", "namespace", []string{}, 1, struct{}{}},
	jsonform.At("topic", func(w *jsonform.Writer, e *events.Event) { w.Text(e.Topic) }),
	jsonform.At("type", func(w *jsonform.Writer, e *events.Event) { w.Text(e.Type) }),
	jsonform.At("key", func(w *jsonform.Writer, e *events.Event) { w.Text(e.Key) }),
	jsonform.At("namespace", func(w *jsonform.Writer, e *events.Event) { w.Text(e.Namespace) }),
	jsonform.At([]string{}, func(w *jsonform.Writer, e *events.Event) { jsonform.List(w, e.FilterKeys, (*jsonform.Writer).Text) }),
	jsonform.At(1, func(w *jsonform.Writer, e *events.Event) { w.Uint(e.Index) }),
	jsonform.At(struct{}{}, writePayload),
)

// writePayload writes an object with at most two keys: the object itself, and that it was removed.
func writePayload(w *jsonform.Writer, e *events.Event) {
	w.WriteByte('{')
	p, ok := payloads[reflect.TypeOf(e.Object)]
	if ok {
		w.WriteString(`"` + p.name + `":`)
		p.write(w, e.Object)
	}
	if e.Deleted {
		if ok {
			w.WriteByte(',')
		}
		w.WriteString(`"Deleted":true`)
	}
	w.WriteByte('}')
}
