package nomad

import (
	"fmt"
	"slices"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
)

type told struct{ said []string }

func (t *told) Seen(e environment.Environment, again bool) {
	t.said = append(t.said, fmt.Sprint("seen ", e.ID, again))
}
func (t *told) Gone(id environment.ID) { t.said = append(t.said, fmt.Sprint("gone ", id)) }

// Environments that come and go leave nothing behind, and an event that is heard again does not bring them back.
func TestDefinitionsForgetWhatIsGone(t *testing.T) {
	feed := &told{}
	d := definitions{feed: feed}
	d.init()
	job := func(index int) []byte {
		return fmt.Appendf(nil, `{"Job":{"ID":"template-1","JobModifyIndex":%d}}`, index)
	}
	event := func(id environment.ID, kind string, index int) {
		t.Helper()
		if err := d.event(id, &event{topic: "Job", kind: kind, index: uint64(index), data: job(index)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1000 {
		id := environment.ID(i)
		event(id, "JobRegistered", 10*i+1)
		if i%2 == 0 {
			d.change(id)(uint64(10*i + 2))
		}
		event(id, "JobDeregistered", 10*i+3)
		event(id, "JobDeregistered", 10*i+3)
		event(id, "JobRegistered", 10*i+1)
		d.change(id)(0) // was refused
		if want := []string{fmt.Sprint("seen ", i, false), fmt.Sprint("gone ", i)}; !slices.Equal(feed.said, want) {
			t.Fatalf("said %q, not %q", feed.said, want)
		}
		feed.said = nil
	}
	// Two that one change ends, and one that a listing lacks.
	for id := range environment.ID(3) {
		event(id, "JobRegistered", 20001+int(id))
	}
	event(0, "JobBatchDeregistered", 20010)
	event(1, "JobBatchDeregistered", 20010)
	d.all(map[string]*api.Job{}, 20020)
	event(2, "JobRegistered", 20003)
	if want := []string{"seen 0 false", "seen 1 false", "seen 2 false", "gone 0", "gone 1", "gone 2"}; !slices.Equal(feed.said, want) {
		t.Errorf("said %q, not %q", feed.said, want)
	}
	if len(d.at)+len(d.busy)+len(d.late) > 0 {
		t.Errorf("kept: %v %v %v", d.at, d.busy, d.late)
	}
}
