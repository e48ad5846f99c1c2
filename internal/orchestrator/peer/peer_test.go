package peer_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/peer"
)

func TestTwoProtocolsOnOneListener(t *testing.T) {
	defer goleak.VerifyNone(t)
	n, err := peer.Listen(peer.Config{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	for _, p := range []peer.Protocol{peer.Raft, peer.HTTP, peer.Raft} {
		c, err := n.Dial(ctx, p, n.Address())
		if err != nil {
			t.Fatal(err)
		}
		s, err := n.Listener(p).Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(s, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
		defer c.Close()
	}
	// Something else, and nothing at all.
	odd, err := net.Dial("tcp", n.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer odd.Close()
	if _, err := odd.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	_ = odd.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := odd.Read(make([]byte, 1)); err == nil {
		t.Error("a stranger is answered")
	}
	silent, err := net.Dial("tcp", n.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cancel()
	wg.Wait()
	_ = silent.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is open after the end")
	}
}

func TestAnAddressThatNobodyCanReachIsRefused(t *testing.T) {
	if n, err := peer.Listen(peer.Config{Address: "0.0.0.0:0"}); err == nil {
		n.Close()
		t.Error("no error")
	}
	n, err := peer.Listen(peer.Config{Address: "0.0.0.0:0", Advertise: "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if host, _, _ := net.SplitHostPort(n.Address()); host != "192.0.2.1" {
		t.Errorf("others are told %s", n.Address())
	}
}
