package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// certificate is the one that the API is served with. A connection keeps the one it began with.
type certificate struct {
	certFile, keyFile string
	current           atomic.Pointer[tls.Certificate]
}

func loadCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	return c, c.reload()
}

// reload reads the files again. After an error the old certificate stays.
func (c *certificate) reload() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("server.tls.certfile, server.tls.keyfile: %w", err)
	}
	c.current.Store(&pair)
	return nil
}

// config is that of the listener. A session that is resumed would keep the old certificate for as long as its ticket lives.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.CurveP521, tls.CurveP384, tls.CurveP256},
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
		SessionTicketsDisabled: true,
	}
}

// tlsConfig is that of the API's listeners; nil = they do not speak TLS.
func (g *Gateway) tlsConfig() *tls.Config {
	if g.certificate == nil {
		return nil
	}
	return g.certificate.config()
}

// stamp tells whether files were replaced.
func stamp(files ...string) string {
	s := ""
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			s += fmt.Sprintf("%s %d %d;", f, info.ModTime().UnixNano(), info.Size())
		}
	}
	return s
}

// lookTime is how often it is looked whether a certificate was replaced.
const lookTime = 30 * time.Second

// reload reads tokens and certificate again at the signal HUP, and the certificate also once its files have changed. What is wrong changes nothing.
func (g *Gateway) reload(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	return g.reloading(ctx, signals, tick.C)
}

func (g *Gateway) reloading(ctx context.Context, signals <-chan os.Signal, tick <-chan time.Time) error {
	files := func() string { return stamp(g.cfg.Server.TLS.CertFile, g.cfg.Server.TLS.KeyFile) }
	known := files()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			known = files()
			g.reloaded(errors.Join(g.tokens.Reload(), g.renew()))
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
		case <-tick:
			// The two files are replaced one after the other: a pair that does not fit is looked at again.
			if now := files(); g.certificate != nil && now != known {
				err := g.renew()
				if err == nil {
					known = now
				}
				g.reloaded(err)
			}
		}
	}
}

func (g *Gateway) renew() error {
	if g.certificate == nil {
		return nil
	}
	return g.certificate.reload()
}

func (g *Gateway) reloaded(err error) {
	g.telemetry.figures.Reloaded(err)
	if err != nil {
		g.log.WithField("error", err.Error()).Error("not everything could be read again: what was in force before still is")
		return
	}
	g.log.Info("certificate and tokens were read again")
}
