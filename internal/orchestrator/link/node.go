package link

import (
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
)

const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 15 * time.Second
	// retryRefused is the pause after an answer that will stay the same for a while: the node is in the server's own process.
	retryRefused = time.Minute
)

// Servers is where a node's connections go.
type Servers interface {
	// Servers are the addresses of all servers, and a channel that is closed when there are others.
	Servers() (addrs []string, changed <-chan struct{})
	// Connect opens the connection to one of them. An error of kind Conflict says that none is needed there.
	Connect(ctx context.Context, addr string) (io.ReadWriteCloser, error)
}

// Keep holds a connection to each server and serves the requests that come over it with handler, until ctx ends. It returns when every request has ended.
func Keep(ctx context.Context, servers Servers, handler http.Handler, logger logging.Logger) error {
	k := keeper{servers: servers, handler: handler, log: logger}
	holding := map[string]context.CancelFunc{}
	var all sync.WaitGroup
	defer all.Wait()
	defer func() {
		for _, cancel := range holding {
			cancel()
		}
	}()
	for {
		addrs, changed := servers.Servers()
		wanted := make(map[string]bool, len(addrs))
		for _, addr := range addrs {
			wanted[addr] = true
			if _, ok := holding[addr]; ok {
				continue
			}
			hctx, cancel := context.WithCancel(ctx)
			holding[addr] = cancel
			all.Go(func() { k.hold(hctx, addr) })
		}
		for addr, cancel := range holding {
			if !wanted[addr] {
				cancel()
				delete(holding, addr)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

type keeper struct {
	servers Servers
	handler http.Handler
	log     logging.Logger
}

// hold keeps the connection to one server. A failure is logged once, until it has worked again.
func (k keeper) hold(ctx context.Context, addr string) {
	logger := k.log.WithField("server", addr)
	pause, told := retryFirst, false
	for ctx.Err() == nil {
		conn, err := k.servers.Connect(ctx, addr)
		if err == nil {
			pause, told = retryFirst, false
			logger.Debug("connected to server")
			err = k.serve(ctx, conn)
		}
		wait := pause/2 + rand.N(pause/2)
		switch {
		case ctx.Err() != nil:
			return
		case fault.Is(err, fault.Conflict):
			wait = retryRefused
		case !told:
			told = true
			logger.WithError(err).Info("no connection to a server, it will be tried again")
		}
		pause = min(2*pause, retryMost)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// serve answers what comes over one connection, until that ends. It returns when no request is under way.
func (k keeper) serve(ctx context.Context, conn io.ReadWriteCloser) error {
	session, err := yamux.Server(conn, settings())
	if err != nil {
		_ = conn.Close()
		return err
	}
	defer session.Close()
	// Requests whose connection was taken over are not waited for by http.Server.
	var under lifecycle.Tasks
	defer func() { _ = under.Wait(context.WithoutCancel(ctx)) }() // nothing bounds it but the requests, whose contexts have ended
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			under.Do(func() {
				rctx, end := context.WithCancel(r.Context())
				defer end()
				defer context.AfterFunc(ctx, end)() // of a connection that was taken over, net/http ends the context no more
				k.handler.ServeHTTP(w, r.WithContext(rctx))
			})
		}),
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
	}
	unhook := context.AfterFunc(ctx, func() { _ = srv.Close(); _ = session.Close() })
	defer unhook()
	err = srv.Serve(session)
	cancel()
	_ = srv.Close()
	_ = session.Close() // ends the streams that were taken over
	return err
}
