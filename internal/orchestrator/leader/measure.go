package leader

import "time"

// Workers is how many evaluations are in work at a time while this server leads.
func (l *Leader) Workers() int { return l.cfg.Workers }

// measure tells how long something took since start.
func (t *term) measure(name string, start time.Time) {
	if t.cfg.Measure != nil {
		t.cfg.Measure(name, start)
	}
}
