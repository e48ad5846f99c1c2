package cron_test

import (
	"testing"
	"time"

	"rockpool/internal/orchestrator/cron"
	"rockpool/internal/orchestrator/model"
)

func TestNext(t *testing.T) {
	for _, c := range []struct {
		name  string
		p     model.Periodic
		after string
		want  []string
	}{
		{"the earliest of several", model.Periodic{Specs: []string{"0 3 * * *", "*/20 * * * *"}}, "2026-01-01T02:30:00Z",
			[]string{"2026-01-01T02:40:00Z", "2026-01-01T03:00:00Z", "2026-01-01T03:20:00Z"}},
		{"in a zone", model.Periodic{Specs: []string{"0 8 * * *"}, TimeZone: "Europe/Berlin"}, "2026-03-28T00:00:00Z",
			[]string{"2026-03-28T07:00:00Z", "2026-03-29T06:00:00Z"}},
		{"seconds", model.Periodic{Specs: []string{"*/10 * * * * * *"}}, "2026-01-01T00:00:05Z", []string{"2026-01-01T00:00:10Z"}},
		{"never again", model.Periodic{Specs: []string{"0 0 1 1 * 2020"}}, "2026-01-01T00:00:00Z", []string{""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := cron.Parse(&c.p)
			if err != nil {
				t.Fatal(err)
			}
			at, _ := time.Parse(time.RFC3339, c.after)
			for _, want := range c.want {
				at = s.Next(at)
				if got := at.UTC().Format(time.RFC3339); want == "" && !at.IsZero() || want != "" && got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
			}
		})
	}
}

// A job in the middle of the night is due about once a night, also in those two in which the clock is set, and its times always grow.
func TestTheClockMayBeSet(t *testing.T) {
	s, err := cron.Parse(&model.Periodic{Specs: []string{"30 2 * * *"}, TimeZone: "Europe/Berlin"})
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"2026-03-25T12:00:00Z", "2026-10-21T12:00:00Z"} {
		at, _ := time.Parse(time.RFC3339, from)
		first, n := at, 0
		for at.Sub(first) < 10*24*time.Hour {
			next := s.Next(at)
			if !next.After(at) || next.Sub(at) > 49*time.Hour {
				t.Fatalf("after %s comes %s", at, next)
			}
			at = next
			n++
		}
		if n < 9 || n > 12 {
			t.Errorf("from %s it was due %d times in ten days", from, n)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for _, p := range []model.Periodic{
		{}, {Specs: []string{"no"}}, {Specs: []string{"61 * * * *"}}, {Specs: []string{"* * * * *"}, TimeZone: "Moon/Crater"},
		{Specs: []string{"* * * * *"}, TimeZone: "Local"}, {Specs: []string{"* * * * *", ""}},
	} {
		if s, err := cron.Parse(&p); err == nil {
			t.Errorf("%+v was accepted: %v", p, s)
		}
	}
}
