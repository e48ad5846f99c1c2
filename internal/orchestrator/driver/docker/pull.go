package docker

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"rockpool/internal/fault"
)

// progressEvery bounds how often a pull tells how far it is: a task keeps its last ten events.
const progressEvery = 10 * time.Second

// pulls are the pulls under way. Tasks that want the same image with the same credentials share one.
type pulls struct {
	mu   sync.Mutex
	byID map[string]*pull
}

type pull struct {
	done chan struct{}
	err  error // valid after done

	mu   sync.Mutex
	tell []func(note string)
}

func (p *pull) note(format string, args ...any) {
	p.mu.Lock()
	tell := p.tell
	p.mu.Unlock()
	for _, f := range tell {
		f(fmt.Sprintf(format, args...))
	}
}

// provide makes the engine have the image.
func (d *Driver) provide(ctx context.Context, c *config, emit func(string)) error {
	if !c.forcePull {
		_, err := d.api.ImageInspect(ctx, c.image)
		if err == nil || !cerrdefs.IsNotFound(err) {
			return d.explain(err, "look for image "+c.image)
		}
	}
	ref, err := reference.ParseNormalizedNamed(c.image)
	if err != nil { // an id
		return fault.New(fault.Invalid, "image %s: the engine does not have it, and an id cannot be pulled: name the image as its registry does", c.image)
	}
	auth, err := d.credentials(c, reference.Domain(ref))
	if err != nil {
		return fmt.Errorf("image %s: %w", c.image, err)
	}
	p := d.join(c, auth, emit)
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("pull image %s: %w", c.image, context.Cause(ctx))
	}
}

// join takes part in the pull that is under way, or begins one. A pull goes on when whoever wanted it has left: the engine keeps
// what it has got, and the next task needs it.
func (d *Driver) join(c *config, auth string, emit func(string)) *pull {
	key := c.image + "\n" + auth
	d.pulls.mu.Lock()
	defer d.pulls.mu.Unlock()
	p := d.pulls.byID[key]
	if p != nil {
		p.mu.Lock()
		p.tell = append(p.tell, emit)
		p.mu.Unlock()
	} else {
		p = &pull{done: make(chan struct{}), tell: []func(string){emit}} // who begins it misses nothing
		d.pulls.byID[key] = p
		d.goroutines.Go(func() {
			p.err = d.pull(c, auth, p)
			d.pulls.mu.Lock()
			delete(d.pulls.byID, key)
			d.pulls.mu.Unlock()
			close(p.done)
		})
	}
	return p
}

func (d *Driver) pull(c *config, auth string, p *pull) error {
	ctx, cancel := context.WithTimeoutCause(d.life, c.pullTimeout, fmt.Errorf("not done within %v (image_pull_timeout)", c.pullTimeout))
	defer cancel()
	failed := func(err error) error {
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("pull image %s: %w", c.image, context.Cause(ctx))
		case client.IsErrConnectionFailed(err):
			return d.explain(err, "pull image "+c.image)
		}
		return fmt.Errorf("pull image %s: %w", c.image, err)
	}
	p.note("Downloading image %s", c.image)
	stream, err := d.api.ImagePull(ctx, c.image, client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		return failed(err)
	}
	defer stream.Close()
	progress := progress{layers: map[string]*jsonstream.Progress{}, next: time.Now().Add(progressEvery)}
	for m, err := range stream.JSONMessages(ctx) {
		if err == nil && m.Error != nil {
			err = m.Error
		}
		if err != nil {
			return failed(err)
		}
		if text := progress.add(m, time.Now()); text != "" {
			p.note("Downloading image %s: %s", c.image, text)
		}
	}
	if _, err := d.api.ImageInspect(ctx, c.image); err != nil { // the stream may have been cut off
		return failed(fmt.Errorf("the engine does not have it afterwards: %w", err))
	}
	p.note("Downloaded image %s", c.image)
	return nil
}

// progress sums up what the engine says about each layer.
type progress struct {
	layers map[string]*jsonstream.Progress
	done   int
	next   time.Time
}

const maxLayers = 1000 // whose progress is followed

// add returns a line when it is time for one.
func (p *progress) add(m jsonstream.Message, now time.Time) string {
	switch {
	case m.Status == "Pull complete" || m.Status == "Already exists":
		p.done++
	case m.Status == "Downloading" && m.Progress != nil && len(p.layers) < maxLayers:
		p.layers[m.ID] = m.Progress
	}
	if now.Before(p.next) {
		return ""
	}
	p.next = now.Add(progressEvery)
	var have, total int64
	for _, l := range p.layers {
		have, total = have+l.Current, total+max(l.Total, l.Current)
	}
	return fmt.Sprintf("%d MiB of %d MiB, %d layers complete", have>>20, total>>20, p.done)
}

// credentials are those of the job, or those that the Docker config file has for the registry; "" = none.
func (d *Driver) credentials(c *config, domain string) (string, error) {
	a := c.auth
	if a.Username == "" && a.Password == "" {
		var err error
		if a, err = readCredentials(d.cfg.Credentials, domain); err != nil || a == (registry.AuthConfig{}) {
			return "", err
		}
	}
	a.ServerAddress = cmp.Or(a.ServerAddress, domain)
	return authconfig.Encode(a)
}
