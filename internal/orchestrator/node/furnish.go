package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node/tasklog"
	"rockpool/internal/orchestrator/node/template"
)

// Directories of a task, below its root or the node's own directory of it.
const (
	localDir   = "local"
	secretsDir = "secrets"
	logDir     = "alloc/logs"
)

// furnish fills in what a task finds when it starts: its templates, the payload of its dispatch, and the volumes it mounts.
func (t *taskRunner) furnish(d driver.Driver, cfg *driver.TaskConfig, n *model.Node, a *model.Allocation, g *model.TaskGroup, spec *model.Task) error {
	rooted := false
	if r, ok := d.(driver.Rooted); ok {
		rooted = r.Rooted()
	}
	base := "/"
	if !rooted {
		base = filepath.Join(t.alloc.agent.db.files(a.ID), t.name)
	}
	if bare, ok := d.(driver.Bare); !ok || !bare.Bare() {
		cfg.Env["NOMAD_TASK_DIR"], cfg.Env["NOMAD_SECRETS_DIR"] = path.Join(base, localDir), path.Join(base, secretsDir)
	}
	if s, ok := d.(driver.Sharer); ok && s.Shares(spec) {
		cfg.Env["NOMAD_ALLOC_DIR"] = driver.SharedDir
		if len(g.Tasks) > 1 {
			var err error
			if cfg.AllocDir, err = t.alloc.share.open(t.alloc.agent.db.files(a.ID), a.Resources.DiskMB); err != nil {
				return &setupError{fmt.Errorf("make the allocation's directory: %w", err)}
			}
		}
	}
	for i, tmpl := range spec.Templates {
		text, err := template.Render(tmpl.Text, cfg.Env)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "template %d: %v", i+1, err)
		}
		if tmpl.Env {
			vars, err := template.Variables(text)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "template %d: %v", i+1, err)
			}
			maps.Copy(cfg.Env, vars)
		}
		mode, err := strconv.ParseInt(cmp.Or(tmpl.Perms, "0644"), 8, 32)
		if err != nil || mode&^0o777 != 0 {
			return fault.New(fault.Invalid, "template %d: permissions %q are not an octal number up to 0777", i+1, tmpl.Perms)
		}
		at, err := below(expand(tmpl.Destination, n, cfg.Env))
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "template %d: %v", i+1, err)
		}
		cfg.Files = append(cfg.Files, driver.File{Path: at, Mode: mode, Data: []byte(text)})
	}
	if spec.DispatchPayload != "" && len(a.Job.Payload) > 0 {
		at, err := below(path.Join(localDir, path.Clean("/"+spec.DispatchPayload)))
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "dispatch payload: %v", err)
		}
		cfg.Files = append(cfg.Files, driver.File{Path: at, Mode: 0o644, Data: a.Job.Payload})
	}
	for _, m := range spec.VolumeMounts {
		v := g.Volumes[m.Volume]
		if v == nil {
			return fault.New(fault.Invalid, "volume %q is not one of the group's", m.Volume)
		}
		host := n.HostVolumes[v.Source]
		switch {
		case v.Type != "host":
			return fault.New(fault.Invalid, "volume %q: type %q is not offered, only host", v.Name, v.Type)
		case host == nil:
			return fault.New(fault.Invalid, "volume %q: this node has no host volume %q", v.Name, v.Source)
		case host.ReadOnly && !v.ReadOnly && !m.ReadOnly:
			return fault.New(fault.Invalid, "volume %q: the node's host volume %q is for reading only", v.Name, v.Source)
		case !path.IsAbs(m.Destination):
			return fault.New(fault.Invalid, "volume %q: the destination %q is not an absolute path", v.Name, m.Destination)
		}
		cfg.Mounts = append(cfg.Mounts, driver.Mount{Source: host.Path, Target: path.Clean(m.Destination), ReadOnly: host.ReadOnly || v.ReadOnly || m.ReadOnly})
	}
	if !rooted && len(cfg.Files) > 0 {
		if err := write(base, cfg.Files); err != nil {
			return &setupError{fmt.Errorf("write the task's files: %w", err)}
		}
	}
	return nil
}

// below checks that a path stays below the task's directory.
func below(p string) (string, error) {
	if p = path.Clean(p); path.IsAbs(p) {
		p = p[1:]
	}
	if !filepath.IsLocal(p) || p == "." {
		return "", fmt.Errorf("the destination %q is no file below the task's directory", p)
	}
	return p, nil
}

// write puts files below the node's own directory of a task. Links in it lead nowhere else.
func write(dir string, files []driver.File) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, f := range files {
		if err := root.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
			return err
		}
		if err := root.WriteFile(f.Path, f.Data, os.FileMode(f.Mode)); err != nil {
			return err
		}
		if err := root.Chmod(f.Path, os.FileMode(f.Mode)); err != nil { // whatever the umask says
			return err
		}
	}
	return nil
}

// Logs that a task gets where its job says nothing; the numbers are Nomad's.
const (
	logFilesKept = 10
	logFileMB    = 10
)

// openLogs gives a task's streams their files, unless the job wants none.
func (t *taskRunner) openLogs(cfg *driver.TaskConfig, spec *model.Task) {
	if spec.LogConfig.Disabled {
		return
	}
	limits := tasklog.Limits{Files: cmp.Or(spec.LogConfig.MaxFiles, logFilesKept), FileBytes: int64(cmp.Or(spec.LogConfig.MaxFileSizeMB, logFileMB)) << 20}
	dir := filepath.Join(t.alloc.agent.db.files(t.alloc.id), logDir)
	out := tasklog.New(dir, t.name+".stdout.", limits)
	errs := tasklog.New(dir, t.name+".stderr.", limits)
	t.alloc.mu.Lock()
	t.output = []*tasklog.Writer{out, errs}
	t.alloc.mu.Unlock()
	cfg.Stdout, cfg.Stderr = out, errs
}

// closeLogs ends the logs of an incarnation of which nothing is left.
func (t *taskRunner) closeLogs() {
	t.alloc.mu.Lock()
	logs := t.output
	t.output = nil
	t.alloc.mu.Unlock()
	for _, l := range logs {
		if err := l.Close(); err != nil {
			t.alloc.log().WithError(err).WithField("task", t.name).Warn("a part of a task's output could not be kept")
		}
	}
}
