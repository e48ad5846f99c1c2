package wire

import (
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/cron"
	"rockpool/internal/orchestrator/model"
)

// templates checks what makes a job one that others are made of.
func (p *Problems) templates(j *api.Job) {
	repeats := val(j.Type) == model.JobTypeBatch || val(j.Type) == model.JobTypeSysbatch
	if c := j.Periodic; c != nil {
		if !repeats {
			p.err("Periodic can only be used with %q or %q scheduler", model.JobTypeBatch, model.JobTypeSysbatch)
		}
		if t := val(c.SpecType); t != "" && t != api.PeriodicSpecCron {
			p.err("Unknown periodic specification type %q", t)
		}
		if val(c.Spec) != "" && len(c.Specs) > 0 {
			p.err("Only one of cron and crons may be given")
		}
		if len(c.Specs) > maxSpecs {
			p.err("At most %d cron expressions are allowed, not %d", maxSpecs, len(c.Specs))
		}
		var out model.Job
		policiesIn(j, &out)
		if _, err := cron.Parse(out.Periodic); err != nil {
			p.err("%v", err)
		}
	}
	if c := j.ParameterizedJob; c != nil {
		if !repeats {
			p.err("Parameterized job can only be used with %q or %q scheduler", model.JobTypeBatch, model.JobTypeSysbatch)
		}
		if !slices.Contains([]string{"", "optional", "required", "forbidden"}, c.Payload) {
			p.err("Unknown payload requirement: %q", c.Payload)
		}
		var both []string
		for _, k := range c.MetaRequired {
			if slices.Contains(c.MetaOptional, k) {
				both = append(both, k)
			}
		}
		if len(both) > 0 {
			p.err("Required and optional meta keys should be disjoint. Following keys exist in both: %s", strings.Join(both, ", "))
		}
	}
}

const maxSpecs = 32

// policies checks how a group is updated, moved, waited for and scaled.
func (p *Problems) policies(where string, g *api.TaskGroup, jobType string) {
	p.update(where, g.Update, jobType)
	p.migrate(where, g.Migrate, jobType)
	p.disconnect(where, g, jobType)
	p.scaling(where, g, jobType)
	if val(g.ShutdownDelay) < 0 {
		p.err("%s: ShutdownDelay must be a positive value", where)
	}
	if r := g.ReschedulePolicy; r != nil && jobType == model.JobTypeSystem && (val(r.Attempts) > 0 || val(r.Unlimited)) {
		p.err("%s: System jobs should not have a reschedule policy", where)
	}
	if r := g.ReschedulePolicy; r != nil && val(r.Attempts) < 0 {
		p.err("%s: reschedule attempts can't be negative", where)
	}
}

func (p *Problems) update(where string, u *api.UpdateStrategy, jobType string) {
	if u == nil {
		return
	}
	if jobType == model.JobTypeBatch || jobType == model.JobTypeSysbatch {
		if val(u.MaxParallel) > 0 {
			p.ignored("update", where+", which is not a service,")
		}
		return
	}
	switch h := val(u.HealthCheck); h {
	case model.HealthChecks, model.HealthTaskStates, model.HealthManual, "":
	default:
		p.err("%s: Invalid health check given: %q", where, h)
	}
	if n := val(u.MaxParallel); n < 0 {
		p.err("%s: Max parallel can not be less than zero: %d < 0", where, n)
	}
	if n := val(u.Canary); n < 0 {
		p.err("%s: Canary count can not be less than zero: %d < 0", where, n)
	} else if n == 0 && val(u.AutoPromote) {
		p.err("%s: Auto Promote requires a Canary count greater than zero", where)
	}
	least, healthy, progress := val(u.MinHealthyTime), val(u.HealthyDeadline), val(u.ProgressDeadline)
	if least < 0 {
		p.err("%s: Minimum healthy time may not be less than zero: %v", where, least)
	}
	if healthy <= 0 {
		p.err("%s: Healthy deadline must be greater than zero: %v", where, healthy)
	}
	if progress < 0 {
		p.err("%s: Progress deadline must be zero or greater: %v", where, progress)
	}
	if least >= healthy && healthy > 0 {
		p.err("%s: Minimum healthy time must be less than healthy deadline: %v > %v", where, least, healthy)
	}
	if progress != 0 && healthy >= progress {
		p.err("%s: Healthy deadline must be less than progress deadline: %v > %v", where, healthy, progress)
	}
	if val(u.Stagger) < 0 {
		p.err("%s: Stagger must be greater than zero: %v", where, val(u.Stagger))
	}
}

func (p *Problems) migrate(where string, m *api.MigrateStrategy, jobType string) {
	if m == nil {
		return
	}
	if jobType != model.JobTypeService {
		p.err("%s: Job type %q does not allow migrate block", where, jobType)
	}
	if n := val(m.MaxParallel); n < 0 {
		p.err("%s: MaxParallel must be >= 0 but found %d", where, n)
	}
	switch h := val(m.HealthCheck); h {
	case model.HealthChecks, model.HealthTaskStates, "":
	default:
		p.err("%s: HealthCheck must be %q or %q but found %q", where, model.HealthChecks, model.HealthTaskStates, h)
	}
	if val(m.MinHealthyTime) < 0 || val(m.HealthyDeadline) < 0 {
		p.err("%s: MinHealthyTime and HealthyDeadline of migrate can't be negative", where)
	} else if val(m.MinHealthyTime) > val(m.HealthyDeadline) {
		p.err("%s: MinHealthyTime must be less than HealthyDeadline", where)
	}
}

// disconnect takes both spellings, of which a job may use one.
func (p *Problems) disconnect(where string, g *api.TaskGroup, jobType string) {
	lost, stop := g.MaxClientDisconnect, g.StopAfterClientDisconnect //nolint:staticcheck // older job files say it so
	if d := g.Disconnect; d != nil {
		if lost != nil || stop != nil {
			p.err("%s: disconnect cannot be used together with max_client_disconnect or stop_after_client_disconnect, which say the same", where)
		}
		lost, stop = d.LostAfter, d.StopOnClientAfter
		if r := string(val(d.Reconcile)); r != "" && !slices.Contains([]string{
			model.ReconcileBestScore, model.ReconcileKeepOriginal, model.ReconcileKeepReplacement, model.ReconcileLongestRunning,
		}, r) {
			p.err("%s: reconcile option %q is invalid", where, r)
		}
	}
	for _, d := range []struct {
		name string
		is   *time.Duration
	}{{"lost_after", lost}, {"stop_on_client_after", stop}} {
		if d.is != nil && *d.is < 0 {
			p.err("%s: disconnect %s cannot be a negative duration", where, d.name)
		}
	}
	switch {
	case val(lost) > 0 && val(stop) > 0:
		p.err("%s: Disconnect can only have one of lost_after and stop_on_client_after", where)
	case val(stop) > 0 && jobType != model.JobTypeService && jobType != model.JobTypeBatch:
		p.err("%s: stop_on_client_after can only be used in batch and service jobs", where)
	case val(lost) > 0 && (jobType == model.JobTypeSystem || jobType == model.JobTypeSysbatch):
		p.ignored("disconnect lost_after", where+", which runs on every node,")
	}
}

func (p *Problems) scaling(where string, g *api.TaskGroup, jobType string) {
	s := g.Scaling
	if s == nil {
		return
	}
	count := int64(val(g.Count))
	switch {
	case s.Type != "" && s.Type != api.ScalingPolicyTypeHorizontal:
		p.err("%s: Scaling policy invalid: scaling policy type %q is not supported by Rockpool, only %q is", where, s.Type, api.ScalingPolicyTypeHorizontal)
	case jobType == model.JobTypeSystem || jobType == model.JobTypeSysbatch:
		p.err("%s: Scaling policy invalid: it cannot be used with %s jobs", where, jobType)
	case s.Max == nil || *s.Max < 0:
		p.err("%s: Scaling policy invalid: maximum count must be specified and non-negative", where)
	case val(s.Min) < 0:
		p.err("%s: Scaling policy invalid: minimum count must be specified and non-negative", where)
	case *s.Max < val(s.Min):
		p.err("%s: Scaling policy invalid: maximum count must not be less than minimum count", where)
	case count < val(s.Min):
		p.err("%s: Scaling policy invalid: task group count must not be less than minimum count in scaling policy", where)
	case count > *s.Max:
		p.err("%s: Scaling policy invalid: task group count must not be greater than maximum count in scaling policy", where)
	}
}
