package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/api"
	"rockpool/internal/config"
	"rockpool/internal/logging"
)

// release is set by the linker for releases.
var release = ""

// Version is the release or the commit that this binary was built from.
func Version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	commit, modified := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "-modified"
		}
	}
	return commit + modified
}

func listeners(s config.Server) ([]net.Listener, error) {
	if !s.SystemdSocketActivation {
		l, err := net.Listen("tcp", net.JoinHostPort(strings.Trim(s.Address, "[]"), strconv.Itoa(int(s.Port))))
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("server.address, server.port: %w: end what listens there, or set another port (ROCKPOOL_SERVER_PORT)", err)
		}
		if err != nil {
			return nil, fmt.Errorf("server.address: %w", err)
		}
		return []net.Listener{l}, nil
	}
	all, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("server.systemdsocketactivation: %w", err)
	}
	var open []net.Listener
	for _, l := range all {
		if l != nil { // not every descriptor is a stream socket
			open = append(open, l)
		}
	}
	if len(open) == 0 {
		return nil, errors.New("server.systemdsocketactivation: systemd has handed over no socket")
	}
	return open, nil
}

// headerSize bounds what a connection may have the gateway keep before it is known who asks, in bytes.
const headerSize = 64 << 10

func (g *Gateway) server(routes http.Handler, open *connections) *http.Server {
	return &http.Server{
		Handler: routes, ConnContext: open.mark, ErrorLog: logging.Connections(g.log),
		// Bodies have a deadline of their own, and nothing bounds an answer: a PUT of an environment or a WebSocket may take long.
		ReadHeaderTimeout: 15 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: headerSize,
		TLSConfig: g.tlsConfig(),
	}
}

// serve answers requests until ctx ends, then waits for plain requests and ends the sessions.
func (g *Gateway) serve(ctx context.Context, routes *api.API, handler http.Handler) error {
	open := newConnections(g.cfg.Server, func() { g.telemetry.Refused("connections") }, g.log)
	server := g.server(handler, open)
	group, serveCtx := errgroup.WithContext(ctx)
	for _, l := range g.listen {
		l := open.limit(l)
		group.Go(func() error {
			serve := func() error { return server.Serve(l) }
			if g.certificate != nil {
				serve = func() error { return server.ServeTLS(l, "", "") }
			}
			if err := serve(); !errors.Is(err, http.ErrServerClosed) { // which is how an orderly stop begins, not how it went
				return err
			}
			return nil
		})
	}
	g.log.WithField("address", g.Addr().String()).Info("listening")
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	group.Go(func() error {
		<-serveCtx.Done()
		g.drain(context.WithoutCancel(ctx), routes)
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		// The sessions' final messages first: Shutdown does not see them.
		if err := errors.Join(routes.Stop(stop), server.Shutdown(stop)); err != nil {
			g.log.WithField("error", err.Error()).Warn("requests that did not end in time are cut off")
			_ = server.Close() // which ends their contexts
		}
		routes.Wait()
		return nil
	})
	return group.Wait()
}

// drainTime is how long a stop waits for executions.
func (g *Gateway) drainTime() time.Duration {
	return time.Duration(g.cfg.Server.StopTimeout) * time.Second
}

// drain says that the gateway stops, and gives executions their time to finish.
func (g *Gateway) drain(ctx context.Context, routes *api.API) {
	wait := g.drainTime()
	state := daemon.SdNotifyStopping
	if wait > 0 {
		state += fmt.Sprintf("\nEXTEND_TIMEOUT_USEC=%d", (wait + 4*stopTime).Microseconds())
	}
	_, _ = daemon.SdNotify(false, state)
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	routes.Drain(ctx)
}

// watchdog tells systemd that the API answers, whatever it says.
func (g *Gateway) watchdog(ctx context.Context) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		<-ctx.Done()
		return nil
	}
	client, err := g.selfClient()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		if g.answers(ctx, client, every/2) {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (g *Gateway) selfClient() (*http.Client, error) {
	conf, err := trust(g.cfg.Server.TLS.CAFile)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}, nil
}

func (g *Gateway) answers(ctx context.Context, client *http.Client, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	host, port, err := net.SplitHostPort(g.Addr().String())
	if err != nil {
		return true // a socket without an address cannot be asked; that it is there has to do
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if g.cfg.Server.TLS.Active {
		scheme = "https"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+"/api/v1/health", nil)
	if err != nil {
		return false
	}
	r.Header.Set("User-Agent", g.agent())
	resp, err := client.Do(r)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil
}
