package node_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/packed"
)

// A server that says that it can read packed reports gets such; one that cannot after all, since it is older than the one that was asked, gets them in JSON.
func TestReportsArePackedWhereTheServerCanRead(t *testing.T) {
	defer goleak.VerifyNone(t)
	list, err := packed.Allocs([]*model.Allocation{{ID: "a", Job: &model.Job{ID: "j"}}}, packed.Options{Job: packed.Job})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	old := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/v1/internal/node/n1/heartbeat":
			_ = json.NewEncoder(w).Encode(model.NodeLease{Packed: true})
		case "/v1/internal/node/n1/watch":
			if r.Header.Get("Accept") == model.PackedType {
				_ = json.NewEncoder(w).Encode(model.PackedPush{Generation: 7, Packed: list})
			}
		case "/v1/internal/node/n1/allocations":
			if body[0] != '"' {
				got = append(got, "plain")
			} else if dense, err := base64.StdEncoding.DecodeString(string(body[1 : len(body)-1])); old || err != nil {
				got = append(got, "refused")
				http.Error(w, "what is this", http.StatusBadRequest)
				return
			} else if u, err := packed.ReadReports(dense); err == nil && len(u) == 1 {
				got = append(got, "packed "+u[0].ID)
			}
			_, _ = io.WriteString(w, "{}")
		}
	}))
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	r, err := node.NewRemote([]string{srv.URL}, node.Identity{ID: "n1", Secret: "s"}, "", client)
	if err != nil {
		t.Fatal(err)
	}
	report := func() {
		t.Helper()
		if err := r.UpdateAllocations(t.Context(), []model.AllocUpdate{{ID: "a"}}); err != nil {
			t.Fatal(err)
		}
	}
	report()
	if _, err := r.Heartbeat(t.Context()); err != nil {
		t.Fatal(err)
	}
	report()
	old = true
	report()
	report()
	want := []string{"plain", "packed a", "refused", "plain", "plain"}
	if len(got) != len(want) {
		t.Fatalf("%v, not %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, not %v", got, want)
		}
	}
	var pushed []*model.Allocation
	_ = r.Watch(t.Context(), func(p model.AllocPush) error { pushed = p.Allocs; return nil })
	if len(pushed) != 1 || pushed[0].ID != "a" || pushed[0].Job == nil || pushed[0].Job.ID != "j" {
		t.Errorf("pushed: %+v", pushed)
	}
}
