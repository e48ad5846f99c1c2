package nomad

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner"
)

// A claim is written once: as a mark, or as a registration where nothing was marked. What may have been marked is never registered too.
func TestAClaimIsAMarkOrARegistration(t *testing.T) {
	is := func(k fault.Kind) func(error) bool { return func(err error) bool { return fault.Is(err, k) } }
	none := func(err error) bool { return err == nil }
	for name, c := range map[string]struct {
		offered    bool
		status     int
		text       string
		want       func(error) bool
		registered bool
	}{
		"marked":                          {true, 200, `{"JobModifyIndex":8,"Index":8}`, none, false},
		"not offered":                     {false, 0, "", none, true},
		"a server without marks":          {true, 404, "", none, true},
		"an evaluation is under way":      {true, 422, "job is being evaluated: register it instead", none, true},
		"somebody was first":              {true, 500, "Enforcing job modify index 7: job exists with conflicting job modify index: 8", is(fault.Conflict), false},
		"nobody leads":                    {true, 500, "No cluster leader", is(fault.Unavailable), false},
		"servers that do not know it yet": {true, 503, "not all servers know the entry", is(fault.Unavailable), false},
		"forbidden":                       {true, 403, "Permission denied", is(fault.Forbidden), false},
		"an answer that is cut off":       {true, 200, `{"JobModify`, is(fault.Unavailable), false},
	} {
		t.Run(name, func(t *testing.T) {
			marked, registered := "", false
			mux := http.NewServeMux()
			mux.HandleFunc("PUT /v1/rockpool/job/{id}/mark", func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				marked = r.PathValue("id") + " " + string(body)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.text)
			})
			mux.HandleFunc("PUT /v1/jobs", func(w http.ResponseWriter, r *http.Request) {
				var req api.JobRegisterRequest
				if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
					t.Error(err)
				}
				meta := req.Job.TaskGroups[0].Meta
				registered = req.EnforceIndex && req.JobModifyIndex == 7 && meta["used"] == "true" && meta["timeout"] == "30" && meta["kept"] == "yes"
				_, _ = fmt.Fprint(w, `{"JobModifyIndex":9}`)
			})
			s := httptest.NewServer(mux)
			defer s.Close()
			client, err := New(Options{Address: s.URL}, logging.Discard())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.marks.Store(c.offered)
			job := &api.Job{ID: new("10-a"), JobModifyIndex: new(uint64(7)), TaskGroups: []*api.TaskGroup{{Name: new(configGroup), Count: new(0), Meta: map[string]string{"used": "false", "kept": "yes"}}}}
			err = client.mark(t.Context(), job, runner.Mark{Timeout: 30 * time.Second})
			if !c.want(err) || errors.Is(err, errNotMarked) {
				t.Errorf("the claim ended with %v", err)
			}
			if errors.Is(err, runner.ErrClaimLost) != fault.Is(err, fault.Conflict) {
				t.Errorf("whether it was lost is not told: %v", err)
			}
			if want := `10-a {"Group":"config","Meta":{"timeout":"30","used":"true"},"JobModifyIndex":7}`; c.offered != (marked == want) {
				t.Errorf("the mark was %q", marked)
			}
			if registered != c.registered {
				t.Errorf("registered: %v", registered)
			}
			if strings.Contains(marked, "kept") {
				t.Error("more was sent than is changed")
			}
		})
	}
}
