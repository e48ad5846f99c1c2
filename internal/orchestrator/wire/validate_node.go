package wire

import (
	"path"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node/template"
)

// maxTemplates bounds the templates of a task.
const maxTemplates = 64

// volumes checks what a group asks for of the nodes' directories.
func (p *Problems) volumes(where string, all map[string]*api.VolumeRequest) {
	for name, v := range all {
		switch {
		case v == nil:
			p.err("%s: volume %q is null", where, name)
		case v.Type != "host":
			p.err("%s: volume %q has type %q: Rockpool offers host only", where, name, v.Type)
		case v.Source == "":
			p.err("%s: volume %q has no source", where, name)
		case v.PerAlloc:
			p.err("%s: volume %q: per_alloc is not supported by Rockpool", where, name)
		}
	}
}

// lifecycles checks the hooks of a group, and what its tasks mount.
func (p *Problems) lifecycles(where string, g *api.TaskGroup) {
	mains := 0
	for _, t := range g.Tasks {
		for _, m := range t.VolumeMounts {
			switch {
			case m == nil:
				p.err("%s, task %s: a volume mount is null", where, t.Name)
			case g.Volumes[val(m.Volume)] == nil:
				p.err("%s, task %s: volume %q is not one of the group's", where, t.Name, val(m.Volume))
			case !path.IsAbs(val(m.Destination)) || path.Clean(val(m.Destination)) == "/":
				p.err("%s, task %s: volume %q needs an absolute path as its destination, not %q", where, t.Name, val(m.Volume), val(m.Destination))
			}
		}
		l := t.Lifecycle
		if l == nil {
			mains++
			continue
		}
		switch l.Hook {
		case model.HookPrestart, model.HookPoststart:
		case model.HookPoststop:
			if l.Sidecar {
				p.err("%s, task %s: a poststop task cannot be a sidecar: nothing runs beside it", where, t.Name)
			}
		default:
			p.err("%s, task %s: lifecycle hook %q is none of prestart, poststart, poststop", where, t.Name, l.Hook)
		}
		if t.Leader {
			p.err("%s, task %s: a leader cannot have a lifecycle hook", where, t.Name)
		}
	}
	if mains == 0 && len(g.Tasks) > 0 {
		p.err("%s: at least one task must have no lifecycle hook", where)
	}
	if val(g.ShutdownDelay) < 0 {
		p.err("%s: shutdown_delay must not be negative", where)
	}
}

// furnishing checks what a node puts into a task.
func (p *Problems) furnishing(where string, t *api.Task) {
	if t.ShutdownDelay < 0 {
		p.err("%s: shutdown_delay must not be negative", where)
	}
	if r := t.RestartPolicy; r != nil {
		if m := val(r.Mode); m != model.RestartModeFail && m != model.RestartModeDelay {
			p.err("%s: unsupported restart mode: %q", where, m)
		}
		if val(r.Attempts) < 0 || val(r.Interval) < 0 || val(r.Delay) < 0 {
			p.err("%s: restart attempts, interval and delay can't be negative", where)
		}
	}
	if d := t.DispatchPayload; d != nil && !below(d.File) {
		p.err("%s: the dispatch payload's file %q is no path below the task's local directory", where, d.File)
	}
	if len(t.Templates) > maxTemplates {
		p.err("%s: a task has %d templates at most, not %d", where, maxTemplates, len(t.Templates))
	}
	for i, tmpl := range t.Templates {
		if tmpl == nil {
			p.err("%s: template %d is null", where, i+1)
			continue
		}
		p.template(where, i+1, tmpl)
	}
}

func (p *Problems) template(where string, i int, t *api.Template) {
	switch {
	case val(t.SourcePath) != "":
		p.err("%s: template %d: a source is not supported by Rockpool, give the text as data", where, i)
	case val(t.LeftDelim) != "" && val(t.LeftDelim) != "{{" || val(t.RightDelim) != "" && val(t.RightDelim) != "}}":
		p.err("%s: template %d: other delimiters than {{ and }} are not supported by Rockpool", where, i)
	case len(val(t.EmbeddedTmpl)) > template.MaxText:
		p.err("%s: template %d: the text is longer than %d bytes", where, i, template.MaxText)
	case !below(val(t.DestPath)):
		p.err("%s: template %d: the destination %q is no path below the task's directory", where, i, val(t.DestPath))
	}
	if perms := val(t.Perms); perms != "" {
		if n, err := strconv.ParseUint(perms, 8, 32); err != nil || n > 0o777 {
			p.err("%s: template %d: permissions %q are not an octal number up to 0777", where, i, perms)
		}
	}
	if err := template.Check(val(t.EmbeddedTmpl)); err != nil {
		p.err("%s: template %d: %v", where, i, err)
	}
	if t.Wait != nil || val(t.Splay) < 0 {
		p.ignored("wait of a template", where)
	}
}

// below reports whether a path, absolute or not, names something below the directory that it is taken in.
func below(p string) bool {
	if p == "" || strings.ContainsRune(p, 0) {
		return false
	}
	p = strings.TrimLeft(p, "/")
	return p != "" && path.Clean(p) != "." && path.Clean("/"+p) == "/"+path.Clean(p)
}
