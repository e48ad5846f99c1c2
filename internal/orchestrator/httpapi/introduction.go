package httpapi

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/introduction"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// duration is one in JSON: nanoseconds, or a text such as 5m.
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var n int64
	if json.Unmarshal(b, &n) == nil {
		*d = duration(n)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a number of nanoseconds or a text such as 5m")
	}
	if s == "" {
		return nil
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}

type createIntroduction struct {
	Body struct {
		TTL      duration
		NodeName string
		NodePool string
	} `body:"json"`
}

// createIntroduction signs a token for one node, with a key that all servers have. The key is made when it is first needed.
func (a *API) createIntroduction(ctx context.Context, _ auth.Identity, r createIntroduction) (reply, error) {
	ttl := time.Duration(r.Body.TTL)
	if ttl < 0 || ttl > introduction.MaxTTL {
		return reply{}, answer(http.StatusBadRequest, "TTL is %v: it must be at most %v", ttl, introduction.MaxTTL)
	}
	key := a.store.Snapshot().IntroductionKey()
	if key == nil {
		seed := make([]byte, ed25519.SeedSize)
		if _, err := rand.Read(seed); err != nil {
			return reply{}, fmt.Errorf("make a key for introduction tokens: %w", err)
		}
		made := &command.IntroductionKey{Now: time.Now().UnixNano(), Key: &state.IntroductionKey{ID: ident.New(), Seed: seed}}
		if _, _, err := a.apply(ctx, made); err != nil {
			return reply{}, err
		}
		key = a.store.Snapshot().IntroductionKey() // that of whoever was first
	}
	pool := r.Body.NodePool
	if pool == "" {
		pool = "default"
	}
	jwt, err := introduction.Sign(key.ID, key.Seed, introduction.Claims{
		ID: ident.New(), Region: a.cfg.Region, NodeName: r.Body.NodeName, NodePool: pool,
	}, time.Now(), ttl)
	if err != nil {
		return reply{}, err
	}
	return a.written(a.store.Index(), struct{ JWT string }{jwt}), nil
}

// mayJoin reports whether whoever shows this token, or with "" none, may register a node that is not known yet.
func (a *API) mayJoin(t string) bool {
	switch {
	case a.cfg.Token != "" && auth.TokenEqual(t, a.cfg.Token), a.cfg.JoinToken != "" && auth.TokenEqual(t, a.cfg.JoinToken):
		return true
	case introduction.Looks(t):
		_, err := a.introduced(t)
		return err == nil
	}
	if a.controlled() {
		who, err := a.identify(a.store.Snapshot(), t)
		return err == nil && who.May(auth.NodeWrite)
	}
	return a.cfg.JoinToken == "" && !a.cfg.StrictIntroduction
}

// introduced reads an introduction token.
func (a *API) introduced(t string) (introduction.Claims, error) {
	key := a.store.Snapshot().IntroductionKey()
	if key == nil {
		return introduction.Claims{}, introduction.ErrInvalid
	}
	return introduction.Verify(key.ID, key.Seed, t, a.cfg.Region, time.Now())
}

// introduce makes the entry that registers a node which is not known, by the token that it showed. nil means that it showed none and needs none.
func (a *API) introduce(t string, n *model.Node, evals []*model.Evaluation) (*command.NodeIntroduce, error) {
	if !introduction.Looks(t) || a.cfg.Token != "" && auth.TokenEqual(t, a.cfg.Token) || a.cfg.JoinToken != "" && auth.TokenEqual(t, a.cfg.JoinToken) {
		return nil, nil
	}
	c, err := a.introduced(t)
	switch {
	case err != nil:
		return nil, fault.Wrap(fault.Forbidden, err, "Permission denied")
	case c.NodeName != "" && c.NodeName != n.Name:
		return nil, fault.New(fault.Forbidden, "the introduction token is for a node of another name")
	case c.NodePool != n.NodePool:
		return nil, fault.New(fault.Forbidden, "the introduction token is for node pool %q, the node is in %q", c.NodePool, n.NodePool)
	}
	return &command.NodeIntroduce{
		Now: time.Now().UnixNano(), Token: c.ID, Expires: c.Expires * int64(time.Second), Node: n, Evals: evals,
	}, nil
}

type tokenKey struct{}

// withToken keeps the token that a node showed for the rule that spends it.
func withToken(r *http.Request) context.Context {
	return context.WithValue(r.Context(), tokenKey{}, token(r))
}

func shownToken(ctx context.Context) string {
	t, _ := ctx.Value(tokenKey{}).(string)
	return t
}
