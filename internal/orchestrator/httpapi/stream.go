package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

const (
	streamIdle  = 15 * time.Second // between heartbeats
	streamBound = 40 * time.Second // for a reader to take a line
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
	var line bytes.Buffer
	send := func() error {
		_ = rc.SetWriteDeadline(time.Now().Add(streamBound))
		if _, err := w.Write(line.Bytes()); err != nil {
			return err
		}
		return rc.Flush()
	}
	line.WriteString("{}\n")
	for {
		if err := send(); err != nil {
			return nil //nolint:nilerr // the reader is gone
		}
		line.Reset()
		nctx, cancel := context.WithTimeoutCause(ctx, streamIdle, errIdle)
		index, batch, err := sub.Next(nctx)
		cancel()
		switch {
		case errors.Is(err, errIdle):
			line.WriteString("{}\n")
		case errors.Is(err, events.ErrSlow):
			return fault.New(fault.Gone, "%s", err.Error())
		case err != nil:
			return nil //nolint:nilerr // the reader or the server ends
		default:
			fmt.Fprintf(&line, `{"Index":%d,"Events":[`, index)
			for i, e := range batch {
				if i > 0 {
					line.WriteByte(',')
				}
				line.Write(e.Encoded(encodeEvent))
			}
			line.WriteString("]}\n")
		}
	}
}

var errIdle = errors.New("no event for a while")

// encodeEvent makes an event's form on the wire.
func encodeEvent(e *events.Event) []byte {
	payload := map[string]any{}
	switch o := e.Object.(type) {
	case *model.Job:
		payload["Job"] = wire.JobOut(o)
		if e.Deleted {
			payload["Deleted"] = true
		}
	case *model.Evaluation:
		payload["Evaluation"] = wire.EvalOut(o)
	case *model.Allocation:
		out := wire.AllocOut(o)
		out.Job = nil
		payload["Allocation"] = out
	case *model.Node:
		payload["Node"] = wire.NodeOut(o)
	default:
		sharedPayload(payload, o)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(struct {
		Topic, Type, Key, Namespace string
		FilterKeys                  []string
		Index                       uint64
		Payload                     map[string]any
	}{e.Topic, e.Type, e.Key, e.Namespace, e.FilterKeys, e.Index, payload}); err != nil {
		panic("httpapi: an event cannot be encoded: " + err.Error())
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}
