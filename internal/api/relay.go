package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"rockpool/internal/api/session"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
)

// Gateways are the others that share the cluster.
type Gateways interface {
	// Owner is the URL of the live gateway where an execution waits; false = no other one.
	Owner(ctx context.Context, executionID string) (url string, ok bool, err error)
}

// maxRelays is how many sessions are passed on at once.
const maxRelays = 4096

// relayed marks a request that another gateway passes on, which is not passed on again.
const relayed = "Rockpool-Relayed"

// relay passes a WebSocket on to the gateway where its execution waits, and reports whether that is another one. That gateway authenticates the client
// itself: the token goes with the request.
func (a *API) relay(w http.ResponseWriter, r *http.Request, executionID string) (done bool, err error) {
	if a.opts.Gateways == nil || r.Header.Get(relayed) != "" {
		return false, nil
	}
	base, ok, err := a.opts.Gateways.Owner(r.Context(), executionID)
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
	header := r.Header.Clone()
	for name := range header {
		if strings.HasPrefix(name, "Sec-Websocket-") || name == "Connection" || name == "Upgrade" || name == "Origin" || name == "Te" || name == "Trailer" {
			delete(header, name)
		}
	}
	header.Set(relayed, "1")
	peer, err := session.Dialer{TLS: a.opts.GatewayTLS}.Dial(r.Context(), base, r, header)
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
	ctx, release := a.untilStopped(logging.With(context.WithoutCancel(r.Context()), logging.From(r.Context())))
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
