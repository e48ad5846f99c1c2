// Package cron finds out when a periodic job is due: cron expressions, any of several, in a time zone.
//
// Times follow the clock on the wall of that zone, also when it is set. Due times always grow, whatever becomes of an occasion that such a change leaves out or
// lets come twice.
package cron

import (
	"fmt"
	"time"

	"github.com/hashicorp/cronexpr"

	"rockpool/internal/fault"
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
		return nil, fault.New(fault.Invalid, "Must specify a spec")
	}
	if p.TimeZone != "" {
		if p.TimeZone == "Local" {
			return nil, fault.New(fault.Invalid, "Invalid time zone %q: it differs from server to server", p.TimeZone)
		}
		zone, err := time.LoadLocation(p.TimeZone)
		if err != nil {
			return nil, fault.New(fault.Invalid, "Invalid time zone %q: %v", p.TimeZone, err)
		}
		s.zone = zone
	}
	for _, text := range p.Specs {
		e, err := parse(text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "Invalid cron spec %q: %v", text, err)
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
