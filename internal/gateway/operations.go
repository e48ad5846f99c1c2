package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/api/access"
	"rockpool/internal/auth"
	"rockpool/internal/config"
	"rockpool/internal/logging"
)

// operations serves operators: figures and profiles, each at an address of its own, or both at one.
type operations struct {
	listeners map[string]net.Listener
	handlers  map[string]*http.ServeMux
	tokens    *access.Tokens
	log       logging.Logger
}

// newOperations opens the listeners.
func newOperations(cfg config.Config, tokens *access.Tokens, figures http.Handler, log logging.Logger) (*operations, error) {
	o := &operations{listeners: map[string]net.Listener{}, handlers: map[string]*http.ServeMux{}, tokens: tokens, log: log}
	for _, part := range []struct {
		key, address string
		add          func(*http.ServeMux)
	}{
		{"metrics.address", cfg.Metrics.Address, func(m *http.ServeMux) { m.Handle("GET /metrics", figures) }},
		{"profiling.address", cfg.Profiling.Address, profiles},
	} {
		if part.address == "" {
			continue
		}
		if o.listeners[part.address] == nil {
			l, err := net.Listen("tcp", part.address)
			if err != nil {
				o.close()
				return nil, fmt.Errorf("%s: %w", part.key, err)
			}
			o.listeners[part.address], o.handlers[part.address] = l, http.NewServeMux()
		}
		part.add(o.handlers[part.address])
	}
	return o, nil
}

func profiles(m *http.ServeMux) {
	m.HandleFunc("GET /debug/pprof/", pprof.Index)
	m.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	m.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

func (o *operations) close() {
	for _, l := range o.listeners {
		_ = l.Close()
	}
}

// authorised lets requests through that come from the machine itself by its own address, and those with a token that may operate. Pages of other sites that a
// browser on the machine shows have their own host in the request: they are refused.
func (o *operations) authorised(address string, next http.Handler) http.Handler {
	host, _, _ := net.SplitHostPort(address) // checked with the configuration
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if config.Loopback(host) {
			asked, _, err := net.SplitHostPort(r.Host)
			if err != nil {
				asked = strings.Trim(r.Host, "[]")
			}
			if !config.Loopback(asked) {
				http.Error(w, "ask for it by a loopback address", http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
			return
		}
		secret := r.Header.Get("Poseidon-Token")
		if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
			secret = bearer
		}
		t := o.tokens.Find(secret)
		switch {
		case t == nil:
			w.Header().Set("WWW-Authenticate", "Bearer")
			w.WriteHeader(http.StatusUnauthorized)
		case !t.MayEverywhere(auth.GatewayOperate): // figures tell of all environments, a heap profile holds every token
			http.Error(w, "the token does not have the scope operate for all execution environments", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// run serves until ctx ends.
func (o *operations) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { <-ctx.Done(); return nil }) // also where there is nothing to serve
	for address, l := range o.listeners {
		server := &http.Server{Handler: o.authorised(address, o.handlers[address]), ErrorLog: logging.Connections(o.log), ReadHeaderTimeout: 10 * time.Second,
			ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			return server.Close() // a profile that is being taken has no value to anybody
		})
		o.log.WithField("address", l.Addr().String()).Info("figures or profiles are served")
	}
	return group.Wait()
}
