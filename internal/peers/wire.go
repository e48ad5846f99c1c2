package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
)

// Prefix is where gateways reach each other. It is no part of the clients' API.
const Prefix = "/api/v1/rockpool/peer/"

type byRunner struct {
	ID string `path:"runnerId"`
}

// idleness says how long ago a runner was used. That it is not known is said too: a 404 would be any server's.
type idleness struct {
	Known  bool  `json:"known"`
	IdleMs int64 `json:"idleMs"`
}

// Handler answers other gateways.
func (g *Group) Handler(runners Runners, log logging.Logger) http.Handler {
	p := endpoint.Policy{Scope: auth.Gateway, Timeout: callTime}
	server := endpoint.NewServer(endpoint.Table{
		endpoint.Call("peerIdle", http.MethodGet, Prefix+"runners/{runnerId}", p, func(_ context.Context, _ auth.Identity, r byRunner) (idleness, error) {
			idle, ok := runners.Idle(r.ID)
			return idleness{ok, idle.Milliseconds()}, nil
		}),
		endpoint.Call("peerExpired", http.MethodDelete, Prefix+"runners/{runnerId}", p, func(_ context.Context, _ auth.Identity, r byRunner) (endpoint.NoContent, error) {
			runners.Expired(r.ID)
			return endpoint.NoContent{}, nil
		}),
	}, endpoint.Options{Auth: auth.Func(g.authenticate), Error: writeError, Log: log})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			// Nothing here has a body. net/http would wait for one before it answers, for a stranger's too.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now())
		}
		server.ServeHTTP(w, r)
	})
}

// authenticate knows other gateways by their word.
func (g *Group) authenticate(r *http.Request) (auth.Identity, error) {
	if _, err := g.Vouched(r, r.Header.Get(header)); err != nil {
		return auth.Identity{}, fault.Wrap(fault.Unauthenticated, err, "%s", err.Error())
	}
	return auth.Identity{Name: "gateway", Scopes: map[auth.Scope]bool{auth.Gateway: true}}, nil
}

func writeError(w http.ResponseWriter, r *http.Request, err error) {
	_ = endpoint.WriteJSON(w, r, "application/json", fault.KindOf(err).Status(), map[string]string{"message": fault.Public(err)})
}

// Idle is the least time since any other gateway that lives saw a runner being used; negative = none of them knows it. A gateway that died may have seen
// it until then. An error says that somebody who may know did not answer.
func (g *Group) Idle(ctx context.Context, runnerID string) (least time.Duration, err error) {
	err = g.refresh(ctx)
	g.mu.RLock()
	loss := g.loss
	g.mu.RUnlock()
	least = -1
	note := func(d time.Duration) {
		if least < 0 || d < least {
			least = d
		}
	}
	if !loss.IsZero() {
		note(time.Since(loss))
	}
	var mu sync.Mutex
	g.each(func(p Peer) {
		answer, askErr := g.ask(ctx, p, runnerID)
		mu.Lock()
		defer mu.Unlock()
		err = errors.Join(err, askErr)
		if answer.Known {
			note(time.Duration(answer.IdleMs) * time.Millisecond)
		}
	})
	return least, err
}

// Expire tells all others that a runner goes because nobody used it, so that what runs there through them ends for that reason.
func (g *Group) Expire(ctx context.Context, runnerID string) {
	g.each(func(p Peer) {
		resp, err := g.call(ctx, p, http.MethodDelete, runnerID)
		if err == nil {
			err = resp.Body.Close()
		}
		if err != nil {
			g.log.WithFields(logging.Fields{"gateway": p.ID, "runner_id": runnerID, "error": err.Error()}).Debug("a gateway was not told of a runner's end")
		}
	})
}

func (g *Group) each(f func(Peer)) {
	var wg sync.WaitGroup
	for _, p := range g.Peers() {
		wg.Go(func() { f(p) })
	}
	wg.Wait()
}

func (g *Group) ask(ctx context.Context, p Peer, runnerID string) (idleness, error) {
	resp, err := g.call(ctx, p, http.MethodGet, runnerID)
	if err != nil {
		return idleness{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return idleness{}, fault.New(fault.Unavailable, "the gateway %s at %s answers with status %d", p.ID, p.URL, resp.StatusCode)
	}
	var answer idleness
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1024)).Decode(&answer); err != nil {
		return idleness{}, fault.Wrap(fault.Unavailable, err, "the gateway %s gave no answer", p.ID)
	}
	return answer, nil
}

func (g *Group) call(ctx context.Context, p Peer, method, runnerID string) (*http.Response, error) {
	if p.URL == "" {
		return nil, fault.New(fault.Unavailable, "the gateway %s has not proved where it is reached", p.ID)
	}
	r, err := http.NewRequestWithContext(ctx, method, p.URL+Prefix+"runners/"+runnerID, nil)
	if err != nil {
		return nil, fmt.Errorf("the gateway %s: %w", p.ID, err)
	}
	r.Header.Set(header, g.Vouch(p, r, ""))
	resp, err := g.http.Do(r)
	return resp, fault.Wrap(fault.Unavailable, err, "the gateway %s cannot be reached at %s", p.ID, p.URL)
}
