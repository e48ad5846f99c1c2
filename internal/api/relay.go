package api

import (
	"context"
	"errors"
	"net/http"

	"rockpool/internal/api/session"
	"rockpool/internal/auth"
	"rockpool/internal/fault"
)

// Gateways are the others that share the cluster.
type Gateways interface {
	// Owner is the live gateway where an execution waits; false = no other one.
	Owner(ctx context.Context, executionID string) (g Neighbour, ok bool, err error)
	// Vouched is the name of the token that another gateway has authenticated a request with which it passes on, by its word.
	Vouched(r *http.Request, word string) (token string, err error)
}

// Neighbour is another gateway.
type Neighbour struct {
	URL string
	// Vouch is our word to it that a request is from whoever has the token of that name.
	Vouch func(r *http.Request, token string) string
}

// maxRelays is how many sessions are passed on at once.
const maxRelays = 4096

// relayed is the header of a request that another gateway passes on, with its word for the client. It is not passed on again.
const relayed = "Rockpool-Relayed"

// passed are the client's headers that go with it: those that say who it is and what it belongs to, and none that is a secret.
var passed = []string{"User-Agent", "Sentry-Trace", "Baggage", "Traceparent", "Tracestate"}

// relay passes a WebSocket on to the gateway where its execution waits, and reports whether that is another one. The client's token does not go with it: this
// gateway has authenticated the client, and gives its word for that.
func (a *API) relay(w http.ResponseWriter, r *http.Request, caller auth.Identity, executionID string) (done bool, err error) {
	if a.opts.Gateways == nil || r.Header.Get(relayed) != "" {
		return false, nil
	}
	other, ok, err := a.opts.Gateways.Owner(r.Context(), executionID)
	if err != nil || !ok {
		return err != nil, err
	}
	if !session.IsHandshake(r) { // refused here as there, before the execution is consumed
		if conn, err := session.Upgrade(w, r, refuseUpgrade); err == nil {
			return true, conn.Close()
		}
		return true, nil
	}
	select {
	case a.relays <- struct{}{}:
		defer func() { <-a.relays }()
	default:
		return true, fault.New(fault.Unavailable, "this gateway passes on as many sessions as it may: connect again in a moment")
	}
	header := http.Header{relayed: {other.Vouch(r, caller.Name)}}
	for _, name := range passed {
		if v := r.Header.Values(name); len(v) > 0 {
			header[name] = v
		}
	}
	peer, err := session.Dialer{TLS: a.opts.GatewayTLS}.Dial(r.Context(), other.URL, r, header)
	if refusal, ok := errors.AsType[*session.Refusal](err); ok {
		return true, repeat(w, refusal)
	}
	if err != nil {
		return true, fault.Wrap(fault.Unavailable, err, "the gateway where this execution waits cannot be reached: connect again in a moment")
	}
	conn, err := session.Upgrade(w, r, refuseUpgrade)
	if err != nil {
		return true, peer.Close()
	}
	a.present.enter()
	defer a.present.leave()
	ctx, release := a.untilStopped(context.WithoutCancel(r.Context()))
	defer release()
	if !a.connections.Do(func() { session.Relay(ctx, conn, peer) }) {
		return true, errors.Join(conn.Close(), peer.Close())
	}
	return true, nil
}

// repeat answers what the other gateway answered.
func repeat(w http.ResponseWriter, refusal *session.Refusal) error {
	if len(refusal.Body) > 0 {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(refusal.Status)
	_, err := w.Write(refusal.Body)
	return err
}
