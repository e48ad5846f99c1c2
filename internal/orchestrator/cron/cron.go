// Package cron finds out when a periodic job is due: cron expressions, any of several, in a time zone.
//
// Times follow the clock on the wall of that zone. An occasion that a change to summer time leaves out is made up for at the first moment after the gap
// or skipped, as the expression says; one that comes twice when the clock is set back is taken each time. Due times always grow.
package cron

import (
	"fmt"
	"time"

	"github.com/hashicorp/cronexpr"

	"rockpool/internal/orchestrator/model"
)

// Schedule is when a job is due.
type Schedule struct {
	specs []*cronexpr.Expression
	zone  *time.Location
}

// Parse reads a job's expressions and zone. The errors are those that Nomad's clients know.
func Parse(p *model.Periodic) (*Schedule, error) {
	s := &Schedule{zone: time.UTC}
	if len(p.Specs) == 0 {
		return nil, fmt.Errorf("Must specify a spec") //nolint:staticcheck // as Nomad has it
	}
	if p.TimeZone != "" {
		if p.TimeZone == "Local" {
			return nil, fmt.Errorf("Invalid time zone %q: it differs from server to server", p.TimeZone) //nolint:staticcheck // as above
		}
		zone, err := time.LoadLocation(p.TimeZone)
		if err != nil {
			return nil, fmt.Errorf("Invalid time zone %q: %w", p.TimeZone, err) //nolint:staticcheck // as above
		}
		s.zone = zone
	}
	for _, text := range p.Specs {
		e, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("Invalid cron spec %q: %w", text, err) //nolint:staticcheck // as above
		}
		s.specs = append(s.specs, e)
	}
	return s, nil
}

// parse keeps a panic of the library, which some broken expressions cause, from ending the server.
func parse(text string) (e *cronexpr.Expression, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	e, err = cronexpr.Parse(text)
	if err == nil {
		e.Next(time.Unix(0, 0))
	}
	return e, err
}

// Next is the first time after t that the job is due; zero = never again.
func (s *Schedule) Next(t time.Time) time.Time {
	t = t.In(s.zone)
	var next time.Time
	for _, e := range s.specs {
		if n := after(e, t); !n.IsZero() && (next.IsZero() || n.Before(next)) {
			next = n
		}
	}
	return next
}

// after insists on a time that is later than t, whatever a change of the clock does to the library's arithmetic.
func after(e *cronexpr.Expression, t time.Time) time.Time {
	for from := t; ; from = from.Add(time.Hour) {
		n := e.Next(from)
		if n.IsZero() || n.After(t) {
			return n
		}
		if from.Sub(t) > 3*time.Hour {
			return time.Time{}
		}
	}
}
