package httpapi

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/go-bexpr"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// query is what every read understands.
type query struct {
	Namespace string        `query:"namespace"`
	Index     uint64        `query:"index"`
	Wait      time.Duration `query:"wait"`
	Stale     endpoint.Flag `query:"stale"`
	Prefix    string        `query:"prefix"`
	Filter    string        `query:"filter"`
	PerPage   int           `query:"per_page"`
	NextToken string        `query:"next_token"`
	Reverse   endpoint.Flag `query:"reverse"`

	Caller endpoint.Caller `caller:""`
}

func (q *query) namespace() string {
	if q.Namespace == "" {
		return model.DefaultNamespace
	}
	return q.Namespace
}

// sees reports whether a list shows what is in a namespace: it is the one asked about, or all are and the caller has the route's scope in it.
func (q *query) sees(namespace string) bool {
	n := q.namespace()
	return n == namespace || n == auth.Everywhere && q.Caller.MayIn(q.Caller.Scope, namespace)
}

// reply is an answer with Nomad's headers.
type reply struct {
	index  uint64
	body   any
	next   string
	leader bool
	age    time.Duration // since this server heard of the leader
}

func (r reply) HTTPHeader(h http.Header) {
	h.Set("X-Nomad-Index", strconv.FormatUint(max(r.index, 1), 10))
	h.Set("X-Nomad-KnownLeader", strconv.FormatBool(r.leader))
	h.Set("X-Nomad-LastContact", strconv.FormatInt(r.age.Milliseconds(), 10))
	h.Set("Vary", "Origin")
	if r.next != "" {
		h.Set("X-Nomad-NextToken", r.next)
	}
}

// HTTPBody is what is encoded.
func (r reply) HTTPBody() any { return r.body }

// found is what a read finds: the answer and the index of its newest change.
type found struct {
	index uint64
	body  any
	next  string
}

const maxWait = 300 * time.Second

// read answers from the state; with an index given, once the answer's own index is greater, or the wait is over.
func (a *API) read(ctx context.Context, q query, f func(*state.Snapshot, state.Watch) (found, error)) (reply, error) {
	if q.Index > 0 {
		wait := q.Wait
		if wait <= 0 || wait > maxWait {
			wait = maxWait
		}
		wait += rand.N(wait/16 + 1) // so that clients that started together do not come back together
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
		defer context.AfterFunc(a.closing, cancel)()
	}
	for {
		var w state.Watch
		if q.Index > 0 {
			w = state.NewWatch()
		}
		r, err := f(a.store.Snapshot(), w)
		if q.Index > 0 && !a.still(q.Caller) {
			return reply{}, denied() // it was taken away while the answer was waited for
		}
		if q.Index == 0 || r.index > q.Index || w.WatchCtx(ctx) != nil {
			return a.contact(reply{index: r.index, body: r.body, next: r.next}), err
		}
	}
}

const (
	maxFilter = 8 << 10 // bytes
	// filterSteps bounds the work of reading a filter, of which brackets in brackets cost many times as much as the ones around them.
	filterSteps = 1_000_000
)

// page filters, sorts and cuts a list. key is an item's token and order.
func page[T any](items iter.Seq[T], q *query, key func(T) string) ([]T, string, error) {
	var ev *bexpr.Evaluator
	if q.Filter != "" {
		if len(q.Filter) > maxFilter {
			return nil, "", fault.New(fault.Invalid, "failed to read filter expression: it is longer than %d bytes", maxFilter)
		}
		var err error
		if ev, err = bexpr.CreateEvaluator(q.Filter, bexpr.WithMaxExpressions(filterSteps)); err != nil {
			return nil, "", fault.New(fault.Invalid, "failed to read filter expression: %v", err)
		}
	}
	out := []T{}
	for v := range items {
		if ev != nil {
			ok, err := ev.Evaluate(v)
			if err != nil {
				return nil, "", fault.New(fault.Invalid, "failed to read filter expression: %v", err)
			}
			if !ok {
				continue
			}
		}
		out = append(out, v)
	}
	if q.Reverse {
		slices.Reverse(out)
	}
	if q.NextToken != "" {
		i := slices.IndexFunc(out, func(v T) bool { return key(v) == q.NextToken })
		if i < 0 { // it is gone, so the page begins with what came after it
			i = slices.IndexFunc(out, func(v T) bool {
				if q.Reverse {
					return key(v) < q.NextToken
				}
				return key(v) > q.NextToken
			})
		}
		if i < 0 {
			i = len(out)
		}
		out = out[i:]
	}
	if q.PerPage > 0 && len(out) > q.PerPage {
		return out[:q.PerPage], key(out[q.PerPage]), nil
	}
	return out, "", nil
}

// mapped yields f of each, leaving out those for which f says no.
func mapped[A, B any](in iter.Seq[A], f func(A) (B, bool)) iter.Seq[B] {
	return func(yield func(B) bool) {
		for v := range in {
			if w, ok := f(v); ok && !yield(w) {
				return
			}
		}
	}
}

// hexPrefix checks a prefix of an id.
func hexPrefix(p string) error {
	digits := ""
	for _, c := range p {
		if c != '-' {
			digits += string(c)
		}
	}
	if len(digits)%2 == 1 {
		digits += "0"
	}
	if _, err := hex.DecodeString(digits); err != nil || len(p) > 36 {
		return answer(http.StatusInternalServerError, "Invalid UUID: %s", p)
	}
	return nil
}

// uuid checks an id.
func uuid(id string) error {
	if !ident.Valid(id) {
		return answer(http.StatusInternalServerError, "Invalid UUID: %s", id)
	}
	return nil
}

// written is the answer to a write whose body also carries the index.
func (a *API) written(index uint64, body any) reply {
	return a.contact(reply{index: index, body: body})
}

// require refuses a caller who may not do s to what is in namespace; "" is for what is in none.
func require(id auth.Identity, s auth.Scope, namespace string) error {
	if !id.MayIn(s, namespace) {
		return fault.New(fault.Forbidden, "Permission denied")
	}
	return nil
}

type indexBody struct{ Index uint64 }

// apply brings an entry onto the log under a bound. Registrations go by the leader, who may place what they bring in the same entry.
func (a *API) apply(ctx context.Context, entry any) (any, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var r any
	var index uint64
	var err error
	if e, ok := entry.(*command.JobRegister); ok {
		r, index, err = a.cfg.Leader.Register(ctx, e)
	} else {
		r, index, err = a.cfg.Log.Apply(ctx, entry)
	}
	if err != nil {
		return nil, index, fmt.Errorf("apply: %w", err)
	}
	return r, index, nil
}
