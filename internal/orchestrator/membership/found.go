package membership

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/consensus"
)

// Raft is what the membership needs of consensus.
type Raft interface {
	Progress() (consensus.Progress, bool)
	Peers() ([]consensus.Peer, uint64, error)
	Bootstrap(ctx context.Context, peers []consensus.Peer) error
	Add(ctx context.Context, p consensus.Peer) error
	Remove(ctx context.Context, id string) error
}

// Paths that servers serve to one another and to nobody else.
const (
	PathPrefix    = "/v1/peer/"
	pathProgress  = PathPrefix + "progress"
	pathBootstrap = PathPrefix + "bootstrap"
)

const (
	askBound     = 2 * time.Second
	promiseBound = 15 * time.Second
	foundEvery   = 500 * time.Millisecond
)

// Founder makes a cluster's first configuration, or promises another server to let it do so.
type Founder struct {
	members *Membership
	raft    Raft
	client  *http.Client

	mu       sync.Mutex
	promised string    // guarded by mu; id of the server that may make the configuration
	until    time.Time // guarded by mu
}

// NewFounder makes one. The transport reaches servers by their RPC address.
func NewFounder(m *Membership, r Raft, t http.RoundTripper) *Founder {
	return &Founder{members: m, raft: r, client: &http.Client{Transport: t, Timeout: askBound}}
}

// Run returns when ctx ends. There is nothing to do for a server that has a configuration.
func (f *Founder) Run(ctx context.Context) error {
	said := ""
	for f.members.cfg.Expect > 0 {
		changed := f.members.Changed()
		p, up := f.raft.Progress()
		if up && p.Configured {
			break
		}
		if up {
			why := "the cluster was founded"
			if err := f.found(ctx); err != nil {
				why = err.Error()
			}
			if why != said && ctx.Err() == nil {
				said = why
				f.members.cfg.Log.WithField("reason", why).Info("first configuration of the cluster")
			}
		}
		t := time.NewTimer(foundEvery)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
	<-ctx.Done()
	return nil
}

// Founders chooses who is in the first configuration and who makes it. It is an error while that is not clear.
func Founders(members []Member, expect int) (peers []consensus.Peer, founder string, err error) {
	seen := map[string]bool{}
	for _, m := range members {
		if m.Status != Alive {
			continue
		}
		if m.Expect() != expect {
			return nil, "", fmt.Errorf("%s expects %d servers and this one %d: give all the same number", m.Name, m.Expect(), expect)
		}
		if m.ID() == "" || seen[m.ID()] {
			return nil, "", fmt.Errorf("%s has no id of its own", m.Name)
		}
		seen[m.ID()] = true
		peers = append(peers, consensus.Peer{ID: m.ID(), Address: m.RPCAddress(), Voter: true})
	}
	switch {
	case len(peers) < expect:
		return nil, "", fmt.Errorf("%d of %d servers have met", len(peers), expect)
	case len(peers) > expect:
		return nil, "", fmt.Errorf("%d servers have met and %d are expected: stop one, or expect more", len(peers), expect)
	}
	slices.SortFunc(peers, func(a, b consensus.Peer) int { return strings.Compare(a.ID, b.ID) })
	return peers, peers[0].ID, nil
}

func (f *Founder) found(ctx context.Context) error {
	cfg := f.members.cfg
	peers, founder, err := Founders(f.members.Members(), cfg.Expect)
	if err != nil {
		return err
	}
	if founder != cfg.ID {
		return errors.New("another server founds the cluster")
	}
	// Each server promises once, so that two groups that overlap cannot both be founded.
	if err := f.promise(cfg.ID, time.Now()); err != nil {
		return err
	}
	for _, p := range peers {
		if p.ID == cfg.ID {
			continue
		}
		if err := f.ask(ctx, http.MethodPut, p.Address, pathBootstrap, bootstrapRequest{cfg.ID}, nil); err != nil {
			return err
		}
	}
	if err := f.raft.Bootstrap(ctx, peers); err != nil {
		return err
	}
	cfg.Log.WithFields(logging.Fields{"servers": len(peers)}).Info("the cluster has its first configuration")
	return nil
}

// promise lets a server found the cluster, unless this one has a configuration or has promised it to another one.
func (f *Founder) promise(id string, now time.Time) error {
	p, up := f.raft.Progress()
	switch {
	case !up:
		return fmt.Errorf("%s is not running yet", f.members.cfg.Name)
	case p.Configured:
		return fmt.Errorf("%s belongs to a cluster already", f.members.cfg.Name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.promised != "" && f.promised != id && now.Before(f.until) {
		return fmt.Errorf("%s waits for server %s to found the cluster", f.members.cfg.Name, f.promised)
	}
	f.promised, f.until = id, now.Add(promiseBound)
	return nil
}

type bootstrapRequest struct{ Founder string }

// ServeHTTP answers other servers. It must be reachable on the listener of servers only.
func (f *Founder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodGet && r.URL.Path == pathProgress:
		p, up := f.raft.Progress()
		if !up {
			http.Error(w, "not running", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p)
	case r.Method == http.MethodPut && r.URL.Path == pathBootstrap:
		var b bootstrapRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&b); err != nil || b.Founder == "" {
			http.Error(w, "a founder is needed", http.StatusBadRequest)
			return
		}
		if err := f.promise(b.Founder, time.Now()); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

// Progress asks the server at that address how far it is.
func (f *Founder) Progress(ctx context.Context, address string) (p consensus.Progress, err error) {
	return p, f.ask(ctx, http.MethodGet, address, pathProgress, nil, &p)
}

func (f *Founder) ask(ctx context.Context, method, address, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, body)
	if err != nil {
		return err
	}
	resp, err := f.client.Do(r)
	if err != nil {
		return fmt.Errorf("ask server %s: %w", address, err)
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, 4096)
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(answer)
		return fmt.Errorf("server %s answered: %s", address, strings.TrimSpace(string(text)))
	}
	if out != nil {
		if err := json.NewDecoder(answer).Decode(out); err != nil {
			return fmt.Errorf("ask server %s: %w", address, err)
		}
	}
	_, _ = io.Copy(io.Discard, answer)
	return nil
}
