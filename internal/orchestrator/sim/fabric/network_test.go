package fabric_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/sim/fabric"
)

var latency = fabric.Latency{Least: 100 * time.Microsecond, Most: time.Millisecond}

// pair is a connection from host a to host b.
func pair(t *testing.T, n *fabric.Network) (a, b net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(":1")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	wg.Go(func() { b, err = l.Accept() })
	a, dialed := n.Host("a").Dial(t.Context(), "b:1")
	wg.Wait()
	if err != nil || dialed != nil {
		t.Fatal(err, dialed)
	}
	return a, b
}

func TestACutHoldsWhatIsSentAndHealingBringsItLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fabric.NewNetwork(1, latency)
		a, b := pair(t, n)
		defer a.Close()
		defer b.Close()
		n.Cut("a", "b")
		fmt.Fprint(a, "late")
		fmt.Fprint(b, "soon") // the other direction is whole
		p := make([]byte, 10)
		if k, err := a.Read(p); err != nil || string(p[:k]) != "soon" {
			t.Errorf("against the cut came %q, %v", p[:k], err)
		}
		_ = b.SetReadDeadline(time.Now().Add(time.Minute))
		if k, err := b.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("over the cut came %q, %v", p[:k], err)
		}
		_ = b.SetReadDeadline(time.Time{})
		var wg sync.WaitGroup
		wg.Go(func() { time.Sleep(time.Hour); n.Heal("a", "b") })
		began := time.Now()
		k, err := b.Read(p)
		if err != nil || string(p[:k]) != "late" || time.Since(began) < time.Hour {
			t.Errorf("after %v came %q, %v", time.Since(began), p[:k], err)
		}
		wg.Wait()
	})
}

func TestACrashIsHeardUnlessItIsSilent(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent ", silent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := fabric.NewNetwork(1, latency)
				a, b := pair(t, n)
				defer a.Close()
				defer b.Close()
				old := n.Host("b")
				old.Crash(silent)
				_ = a.SetReadDeadline(time.Now().Add(time.Minute))
				_, err := a.Read(make([]byte, 1))
				if errors.Is(err, os.ErrDeadlineExceeded) != silent {
					t.Errorf("the other end heard %v", err)
				}
				if _, err := b.Read(make([]byte, 1)); err == nil {
					t.Error("the dead side reads on")
				}
				if _, err := b.Write([]byte("x")); err == nil {
					t.Error("the dead side writes on")
				}
				if _, err := old.Listen(":2"); err == nil {
					t.Error("the dead host listens")
				}
				if _, err := old.Dial(t.Context(), "a:1"); err == nil {
					t.Error("the dead host dials")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := n.Host("a").Dial(ctx, "b:1"); err == nil || errors.Is(err, context.DeadlineExceeded) != silent {
					t.Errorf("dialing a dead host gave %v", err)
				}
				n.Host("b")
				_ = a.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("after the host is back the old connection says %v", err)
				}
				if _, err := n.Host("a").Dial(t.Context(), "b:1"); err == nil {
					t.Error("nobody listens, and yet it connects")
				}
			})
		})
	}
}

func TestAWriterWaitsForASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fabric.NewNetwork(1, latency)
		a, b := pair(t, n)
		_ = a.SetWriteDeadline(time.Now().Add(time.Second))
		k, err := a.Write(make([]byte, 1<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || k >= 1<<20 {
			t.Errorf("it wrote %d bytes, %v", k, err)
		}
		a.Close()
		got, err := io.ReadAll(b)
		if err != nil || len(got) != k {
			t.Errorf("%d of %d bytes came, %v", len(got), k, err)
		}
		b.Close()
		if n.Open() != 0 {
			t.Errorf("%d connections are left", n.Open())
		}
	})
}

func TestHTTPWorksOverIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fabric.NewNetwork(1, latency)
		l, err := n.Host("b").Listen(":80")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for i := range 3 {
				fmt.Fprintln(w, r.URL.Path, i)
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
			}
		})}
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Serve(l) })
		transport := &http.Transport{DialContext: n.Host("a").DialContext}
		resp, err := (&http.Client{Transport: transport}).Get("http://b:80/x")
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		var got []string
		for lines.Scan() {
			got = append(got, lines.Text())
		}
		resp.Body.Close()
		if strings.Join(got, ",") != "/x 0,/x 1,/x 2" {
			t.Errorf("got %q", got)
		}
		transport.CloseIdleConnections()
		_ = s.Close()
		wg.Wait()
	})
}
