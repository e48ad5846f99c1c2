package wire_test

import (
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/wire"
)

// nodeJob is a job that uses all that nodes put into tasks.
func nodeJob() *api.Job {
	return &api.Job{ID: new("j"), Type: new("batch"), TaskGroups: []*api.TaskGroup{{Name: new("g"),
		Volumes: map[string]*api.VolumeRequest{"data": {Name: "data", Type: "host", Source: "shared", ReadOnly: true}},
		Tasks: []*api.Task{
			{Name: "main", Driver: "mock", VolumeMounts: []*api.VolumeMount{{Volume: new("data"), Destination: new("/data")}},
				Templates:       []*api.Template{{EmbeddedTmpl: new(`A={{ env "B" }}`), DestPath: new("local/a.env"), Envvars: new(true), Perms: new("0640")}},
				DispatchPayload: &api.DispatchPayloadConfig{File: "input.json"}, RestartPolicy: &api.RestartPolicy{Mode: new("fail")}},
			{Name: "init", Driver: "mock", Lifecycle: &api.TaskLifecycle{Hook: "prestart"}},
			{Name: "proxy", Driver: "mock", Lifecycle: &api.TaskLifecycle{Hook: "poststart", Sidecar: true}},
			{Name: "clean", Driver: "mock", Lifecycle: &api.TaskLifecycle{Hook: "poststop"}},
		}}}}
}

func TestWhatNodesPutIntoTasksIsValidated(t *testing.T) {
	group := func(f func(*api.TaskGroup)) func(*api.Job) { return func(j *api.Job) { f(j.TaskGroups[0]) } }
	main := func(f func(*api.Task)) func(*api.Job) { return func(j *api.Job) { f(j.TaskGroups[0].Tasks[0]) } }
	for _, c := range []struct {
		name   string
		change func(*api.Job)
		want   string
	}{
		{"all of it", func(*api.Job) {}, ""},
		{"an unknown hook", group(func(g *api.TaskGroup) { g.Tasks[1].Lifecycle.Hook = "later" }), "none of prestart"},
		{"nothing but hooks", group(func(g *api.TaskGroup) { g.Tasks = g.Tasks[1:] }), "no lifecycle hook"},
		{"a poststop sidecar", group(func(g *api.TaskGroup) { g.Tasks[3].Lifecycle.Sidecar = true }), "sidecar"},
		{"a leader with a hook", group(func(g *api.TaskGroup) { g.Tasks[1].Leader = true }), "leader"},
		{"a volume of another type", group(func(g *api.TaskGroup) { g.Volumes["data"].Type = "csi" }), "host only"},
		{"a volume that is not there", main(func(t *api.Task) { t.VolumeMounts[0].Volume = new("x") }), "not one of the group's"},
		{"a mount over the root", main(func(t *api.Task) { t.VolumeMounts[0].Destination = new("/x/..") }), "absolute path"},
		{"a template that climbs out", main(func(t *api.Task) { t.Templates[0].DestPath = new("local/../../etc/passwd") }), "no path below"},
		{"a template with a source", main(func(t *api.Task) { t.Templates[0].SourcePath = new("x") }), "source"},
		{"a template's language", main(func(t *api.Task) { t.Templates[0].EmbeddedTmpl = new(`{{ key "x" }}`) }), "knows {{ env"},
		{"odd permissions", main(func(t *api.Task) { t.Templates[0].Perms = new("4755") }), "0777"},
		{"a payload that climbs out", main(func(t *api.Task) { t.DispatchPayload.File = "../x" }), "dispatch payload"},
		{"a restart mode", main(func(t *api.Task) { t.RestartPolicy.Mode = new("never") }), "restart mode"},
		{"a delay in the past", main(func(t *api.Task) { t.ShutdownDelay = -1 }), "shutdown_delay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := nodeJob()
			c.change(j)
			if err := wire.Complete(j); err != nil {
				t.Fatal(err)
			}
			p := wire.Validate(j)
			text := strings.Join(p.Errors, "\n")
			if c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("%q, want %q", text, c.want)
			}
		})
	}
}
