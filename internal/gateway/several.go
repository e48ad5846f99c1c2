package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/api"
	"rockpool/internal/environment"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/peers"
	"rockpool/internal/runner"
)

// several is what connects this gateway with others on the same cluster. Where server.peeraddress is empty there is no group, and nothing is connected.
type several struct {
	group *peers.Group
	keys  *nomad.Keys
	tls   *tls.Config
	idle  func() // gives idle connections back
	log   logging.Logger
}

func (g *Gateway) several(cluster *nomad.Client) (*several, error) {
	s := &several{log: g.log}
	if g.cfg.Server.PeerAddress == "" {
		return s, nil
	}
	var err error
	if s.tls, err = trust(g.cfg.Server.TLS.CAFile); err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: s.tls, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: 5 * time.Second}
	s.idle = transport.CloseIdleConnections
	s.keys = nomad.NewKeys(cluster)
	s.group = peers.NewGroup(peers.Options{URL: g.cfg.Server.PeerAddress, Key: g.cfg.Server.PeerKey(), Client: transport}, nomad.NewLeases(cluster, peers.TTL), g.log)
	return s, nil
}

// trust is the configuration of connections to gateways: a CA of one's own, or those of the system.
func trust(caFile string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13}
	if caFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("server.tls.cafile: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("server.tls.cafile: there is no certificate in it")
	}
	return conf, nil
}

func (s *several) shared(cluster *nomad.Client) *runner.Shared {
	if s.group == nil {
		return nil
	}
	return &runner.Shared{Others: s.group, Find: cluster.FindRunner, NewExecutionID: s.group.NewExecutionID, Keys: s.keys}
}

func (s *several) join(cluster *nomad.Client, envs *environment.Service, runners *runner.Manager) {
	if s.group != nil {
		s.group.OnChange(runners.Regroup)
		cluster.Several(s.group.Self(), envs)
	}
}

func (s *several) run(ctx context.Context) error {
	if s.group == nil {
		<-ctx.Done()
		return nil
	}
	defer s.idle()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.keys.Run(ctx, s.group.Leading) })
	g.Go(func() error { return s.group.Run(ctx) })
	return g.Wait()
}

// joined is closed once the others know of this gateway.
func (s *several) joined() <-chan struct{} {
	if s.group != nil {
		return s.group.Joined()
	}
	alone := make(chan struct{})
	close(alone)
	return alone
}

func (s *several) gateways() api.Gateways {
	if s.group == nil {
		return nil
	}
	return owners{s.group}
}

type owners struct{ group *peers.Group }

func (o owners) Owner(ctx context.Context, executionID string) (api.Neighbour, bool, error) {
	p, ok, err := o.group.Owner(ctx, executionID)
	return api.Neighbour{URL: p.URL, Vouch: func(r *http.Request, token string) string { return o.group.Vouch(p, r, token) }}, ok, err
}

func (o owners) Vouched(r *http.Request, word string) (string, error) {
	return o.group.Vouched(r, word)
}

// handler serves clients and other gateways.
func (s *several) handler(routes http.Handler, runners *runner.Manager) http.Handler {
	if s.group == nil {
		return routes
	}
	others := s.group.Handler(runners, s.log)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, peers.Prefix) {
			others.ServeHTTP(w, r)
			return
		}
		routes.ServeHTTP(w, r)
	})
}
