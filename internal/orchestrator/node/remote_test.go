package node_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

func TestRemoteSpeaksTheInternalRoutes(t *testing.T) {
	defer goleak.VerifyNone(t)
	id := node.Identity{ID: "n1", Secret: "s"}
	var calls []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls = append(calls, r.Method+" "+r.URL.Path)
		if r.Header.Get("X-Rockpool-Node-Secret") != "s" || r.Header.Get("X-Nomad-Token") != "t" {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return
		}
		switch r.URL.Path {
		case "/v1/internal/node/n1/register":
			var n model.Node
			_ = json.NewDecoder(r.Body).Decode(&n)
			_ = json.NewEncoder(w).Encode(model.NodeLease{HeartbeatTTL: time.Second, Index: uint64(len(n.Name))})
		case "/v1/internal/node/n1/heartbeat":
			http.Error(w, "node not found", http.StatusNotFound)
		case "/v1/internal/node/n1/allocations":
			var u []model.AllocUpdate
			_ = json.NewDecoder(r.Body).Decode(&u)
			fmt.Fprintf(w, `{"Index":%d}`, len(u))
		case "/v1/internal/node/n1/watch":
			fmt.Fprintln(w, `{"Generation":7,"Full":true,"Allocs":[{"ID":"a"}]}`)
			fmt.Fprintln(w, `{}`)
			fmt.Fprintln(w, `{"Generation":8,"Purged":["a"]}`)
		}
	}))
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	r, err := node.NewRemote([]string{srv.URL + "/"}, id, "t", client)
	if err != nil {
		t.Fatal(err)
	}
	if lease, err := r.Register(t.Context(), &model.Node{Name: "abc"}); err != nil || lease.Index != 3 || lease.HeartbeatTTL != time.Second {
		t.Errorf("register: %+v, %v", lease, err)
	}
	if _, err := r.Heartbeat(t.Context()); !fault.Is(err, fault.NotFound) {
		t.Errorf("heartbeat of an unknown node: %v", err)
	}
	if err := r.UpdateAllocations(t.Context(), []model.AllocUpdate{{ID: "a"}}); err != nil {
		t.Errorf("update: %v", err)
	}
	var seen []uint64
	err = r.Watch(t.Context(), func(p model.AllocPush) error { seen = append(seen, p.Generation); return nil })
	if err == nil || len(seen) != 2 || seen[0] != 7 || seen[1] != 8 {
		t.Errorf("watch: %v, %v", seen, err)
	}
	stop := errors.New("stop")
	if err := r.Watch(t.Context(), func(model.AllocPush) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("watch that is to stop: %v", err)
	}
	if len(calls) != 5 {
		t.Errorf("calls %v", calls)
	}
	wrong, _ := node.NewRemote([]string{srv.URL}, node.Identity{ID: "n1", Secret: "x"}, "t", client)
	if _, err := wrong.Register(t.Context(), &model.Node{}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("wrong secret: %v", err)
	}
}

func TestASilentStreamIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go func() {
			_, _ = http.ReadRequest(bufio.NewReader(far))
			fmt.Fprint(far, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
			for range 3 {
				time.Sleep(20 * time.Second)
				fmt.Fprint(far, "{}\n")
			}
		}()
		client := &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}}
		r, err := node.NewRemote([]string{"http://server"}, node.Identity{ID: "n1"}, "", client)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		err = r.Watch(t.Context(), func(model.AllocPush) error { return nil })
		if d := time.Since(begun); !fault.Is(err, fault.Unavailable) || d != 90*time.Second {
			t.Errorf("ended after %v: %v", d, err)
		}
		_ = far.Close()
	})
}

func TestRemoteGoesOnToTheNextServer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"Index":1}`) }))
	defer srv.Close()
	r, err := node.NewRemote([]string{"http://127.0.0.1:1", srv.URL}, node.Identity{ID: "n1"}, "", srv.Client())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Heartbeat(t.Context()); err == nil {
		t.Fatal("nobody listens there")
	}
	if _, err := r.Heartbeat(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRemoteRefusesWhatIsNoAddress(t *testing.T) {
	for _, addrs := range [][]string{nil, {"10.0.0.1:4646"}, {"ftp://x"}, {"http://"}} {
		if _, err := node.NewRemote(addrs, node.Identity{}, "", http.DefaultClient); err == nil {
			t.Errorf("%q taken", addrs)
		}
	}
}

func TestTheNodeLearnsOfOtherServers(t *testing.T) {
	leases := make(chan []string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(model.NodeLease{Servers: <-leases})
	}))
	defer server.Close()
	r, err := node.NewRemote([]string{server.URL}, node.Identity{ID: "id", Secret: "s"}, "", server.Client())
	if err != nil {
		t.Fatal(err)
	}
	_, changed := r.Servers()
	leases <- []string{"http://192.0.2.9:4646", server.URL, "not an address", server.URL}
	if _, err := r.Heartbeat(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-changed
	addrs, again := r.Servers()
	want := []string{"http://192.0.2.9:4646", server.URL}
	slices.Sort(want)
	if !slices.Equal(addrs, want) {
		t.Errorf("%v", addrs)
	}
	leases <- nil // one that says nothing changes nothing, and it is still asked
	if _, err := r.Heartbeat(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again:
		t.Error("the list has changed")
	default:
	}
}
