package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"rockpool/internal/orchestrator/driver"
)

// outputTimeout bounds how long the output of a container that has ended is waited for.
const outputTimeout = 2 * time.Second

// output is the attached output of a container's main process. The engine keeps no log of its own, so what is written while nobody is attached, between two
// processes of the agent, is lost; the process itself goes on.
type output struct {
	once    sync.Once
	conn    client.HijackedResponse
	drained chan struct{}
}

// attach begins to read the output of a container, which need not run yet. Where nobody wants it there is nothing to read.
func (d *Driver) attach(ctx context.Context, cfg driver.TaskConfig, id string) (*output, error) {
	if cfg.Stdout == nil && cfg.Stderr == nil {
		return nil, nil
	}
	r, err := d.api.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return nil, d.explain(err, "read output of container")
	}
	o := &output{conn: r.HijackedResponse, drained: make(chan struct{})}
	d.goroutines.Go(func() {
		defer close(o.drained)
		if err := split(o.conn.Reader, or(cfg.Stdout), or(cfg.Stderr)); err != nil && d.life.Err() == nil {
			d.cfg.Log.WithField("task_id", cfg.ID).WithError(err).Debug("the output of a container ended early")
		}
	})
	return o, nil
}

func or(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// lastWords waits until all is read that the container has written.
func (o *output) lastWords() {
	if o == nil {
		return
	}
	t := time.NewTimer(outputTimeout)
	defer t.Stop()
	select {
	case <-o.drained:
	case <-t.C:
	}
}

func (o *output) close() {
	if o != nil {
		o.once.Do(o.conn.Close)
	}
}

// furnish puts the task's files into a container that was made and not started.
func (d *Driver) furnish(ctx context.Context, id string, files []driver.File) error {
	if len(files) == 0 {
		return nil
	}
	dirs := map[string]bool{}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	archive := new(bytes.Buffer)
	w := tar.NewWriter(archive)
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return fmt.Errorf("put the task's files inside: %w", err)
		}
	}
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.Path, Typeflag: tar.TypeReg, Mode: f.Mode, Size: int64(len(f.Data))}); err != nil {
			return fmt.Errorf("put the task's files inside: %w", err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return fmt.Errorf("put the task's files inside: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("put the task's files inside: %w", err)
	}
	_, err := d.api.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/", Content: archive})
	return d.explain(err, "put the task's files inside")
}

// mounts are the volumes of the node that a task sees.
func mounts(all []driver.Mount) (out []mount.Mount) {
	for _, m := range all {
		out = append(out, mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	return out
}
