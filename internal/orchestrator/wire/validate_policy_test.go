package wire_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/wire"
)

func TestPoliciesOfJobsAreChecked(t *testing.T) {
	for _, c := range []struct {
		name string
		kind string
		f    func(*api.Job, *api.TaskGroup)
		want string // "" = it is accepted
	}{
		{"periodic", "batch", func(j *api.Job, _ *api.TaskGroup) {
			j.Periodic = &api.PeriodicConfig{Spec: new("@daily"), TimeZone: new("Europe/Berlin")}
		}, ""},
		{"several crons", "sysbatch", func(j *api.Job, _ *api.TaskGroup) {
			j.Periodic = &api.PeriodicConfig{Specs: []string{"* * * * *", "@hourly"}}
		}, ""},
		{"a periodic service", "service", func(j *api.Job, _ *api.TaskGroup) { j.Periodic = &api.PeriodicConfig{Spec: new("@daily")} },
			`Periodic can only be used with "batch" or "sysbatch" scheduler`},
		{"a broken cron", "batch", func(j *api.Job, _ *api.TaskGroup) { j.Periodic = &api.PeriodicConfig{Spec: new("never")} }, `Invalid cron spec "never"`},
		{"a broken zone", "batch", func(j *api.Job, _ *api.TaskGroup) {
			j.Periodic = &api.PeriodicConfig{Spec: new("@daily"), TimeZone: new("Moon")}
		}, `Invalid time zone "Moon"`},
		{"no cron", "batch", func(j *api.Job, _ *api.TaskGroup) { j.Periodic = &api.PeriodicConfig{} }, "Must specify a spec"},
		{"cron and crons", "batch", func(j *api.Job, _ *api.TaskGroup) {
			j.Periodic = &api.PeriodicConfig{Spec: new("@daily"), Specs: []string{"@hourly"}}
		}, "Only one of cron and crons"},
		{"parameterized", "batch", func(j *api.Job, _ *api.TaskGroup) {
			j.ParameterizedJob = &api.ParameterizedJobConfig{Payload: "required"}
		}, ""},
		{"an unknown payload", "batch", func(j *api.Job, _ *api.TaskGroup) { j.ParameterizedJob = &api.ParameterizedJobConfig{Payload: "some"} }, `Unknown payload requirement: "some"`},
		{"meta twice", "batch", func(j *api.Job, _ *api.TaskGroup) {
			j.ParameterizedJob = &api.ParameterizedJobConfig{MetaRequired: []string{"a", "b"}, MetaOptional: []string{"b"}}
		}, "Following keys exist in both: b"},
		{"the default update", "service", func(*api.Job, *api.TaskGroup) {}, ""},
		{"no time to be healthy", "service", func(_ *api.Job, g *api.TaskGroup) { g.Update = &api.UpdateStrategy{MinHealthyTime: new(time.Hour)} },
			"Minimum healthy time must be less than healthy deadline"},
		{"a late healthy deadline", "service", func(_ *api.Job, g *api.TaskGroup) { g.Update = &api.UpdateStrategy{HealthyDeadline: new(time.Hour)} },
			"Healthy deadline must be less than progress deadline"},
		{"promotion of nothing", "service", func(_ *api.Job, g *api.TaskGroup) { g.Update = &api.UpdateStrategy{AutoPromote: new(true)} },
			"Auto Promote requires a Canary count greater than zero"},
		{"negative canaries", "service", func(_ *api.Job, g *api.TaskGroup) { g.Update = &api.UpdateStrategy{Canary: new(-1)} }, "Canary count can not be less than zero: -1 < 0"},
		{"an unknown check", "service", func(_ *api.Job, g *api.TaskGroup) { g.Update = &api.UpdateStrategy{HealthCheck: new("feeling")} }, `Invalid health check given: "feeling"`},
		{"migrate of batch", "batch", func(_ *api.Job, g *api.TaskGroup) { g.Migrate = api.DefaultMigrateStrategy() }, "does not allow migrate block"},
		{"rescheduling without end or delay", "service", func(_ *api.Job, g *api.TaskGroup) {
			g.ReschedulePolicy = &api.ReschedulePolicy{Unlimited: new(true), Delay: new(time.Duration(0))}
		}, "unlimited rescheduling needs a delay"},
		{"disconnect", "service", func(_ *api.Job, g *api.TaskGroup) { g.Disconnect = &api.DisconnectStrategy{LostAfter: new(time.Hour)} }, ""},
		{"disconnect twice", "service", func(_ *api.Job, g *api.TaskGroup) {
			g.Disconnect = &api.DisconnectStrategy{LostAfter: new(time.Hour)}
			//lint:ignore SA1019 older job files say it so
			g.MaxClientDisconnect = new(time.Hour)
		}, "disconnect cannot be used together with max_client_disconnect"},
		{"disconnect both ways", "service", func(_ *api.Job, g *api.TaskGroup) {
			g.Disconnect = &api.DisconnectStrategy{LostAfter: new(time.Hour), StopOnClientAfter: new(time.Hour)}
		}, "Disconnect can only have one of lost_after and stop_on_client_after"},
		{"an unknown reconcile", "service", func(_ *api.Job, g *api.TaskGroup) {
			g.Disconnect = &api.DisconnectStrategy{Reconcile: new(api.ReconcileOption("dice"))}
		},
			`reconcile option "dice" is invalid`},
		{"scaling", "service", func(_ *api.Job, g *api.TaskGroup) { g.Scaling = &api.ScalingPolicy{Max: new(int64(3))} }, ""},
		{"scaling without bounds", "service", func(_ *api.Job, g *api.TaskGroup) { g.Scaling = &api.ScalingPolicy{} }, "maximum count must be specified"},
		{"scaling below the count", "service", func(_ *api.Job, g *api.TaskGroup) {
			g.Scaling = &api.ScalingPolicy{Min: new(int64(0)), Max: new(int64(0))}
		},
			"task group count must not be greater than maximum count"},
		{"a negative delay", "service", func(_ *api.Job, g *api.TaskGroup) { g.ShutdownDelay = new(-time.Second) }, "ShutdownDelay must be a positive value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := api.NewTaskGroup("g", 1)
			g.AddTask(api.NewTask("t", "docker"))
			j := &api.Job{ID: new("j"), Type: &c.kind, TaskGroups: []*api.TaskGroup{g}}
			c.f(j, g)
			if err := wire.Complete(j); err != nil {
				t.Fatal(err)
			}
			p := wire.Validate(j)
			if got := strings.Join(p.Errors, "; "); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("it says %q, want %q", got, c.want)
			}
		})
	}
}
